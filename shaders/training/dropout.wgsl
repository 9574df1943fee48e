// y[i] = x[i] * KEPT, or 0 where the hash of the seed and i is below the threshold.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> seed: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> size: vec4<u32>; // elements, threads in x, threshold, salt

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i >= size.x) { return; }
  let key = seed[0] ^ (size.w * 0x9e3779b9u);
  y[i] = select(x[i] * ${KEPT}, 0.0, mix32(mix32(i + 0x9e3779b9u) ^ key) < size.z);
}
