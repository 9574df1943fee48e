// sums[k] += sum over t of x[t, k]^2; one invocation for each column, so that neighbours read neighbouring words.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;
@group(0) @binding(2) var<storage, read> size: vec4<u32>; // K, threads in x, T

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let k = id.y * size.y + id.x;
  if (k >= size.x) { return; }
  var sum = 0.0;
  for (var t = 0u; t < size.z; t++) {
    let value = x[t * size.x + k];
    sum += value * value;
  }
  sums[k] += sum;
}
