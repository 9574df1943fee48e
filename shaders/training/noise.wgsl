// x[t] += SCALE sizes[t] u, with u uniform in -1..1 from the hash of the seed and the element's index.
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> seed: array<u32>;
@group(0) @binding(2) var<storage, read> sizes: array<f32>;
@group(0) @binding(3) var<storage, read> size: vec4<u32>; // elements, threads in x, elements of a token

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i >= size.x) { return; }
  let drawn = mix32(mix32(i + 0x9e3779b9u) ^ seed[0]);
  x[i] += ${SCALE} * sizes[i / size.z] * (f32(drawn >> 8u) * (2.0 / 16777216.0) - 1.0);
}
