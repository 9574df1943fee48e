// c[m, n] (+)= ALPHA Σ_z partial[z, m, n], in the order of z.
@group(0) @binding(0) var<storage, read> partial: array<f32>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * ${STRIDE}u + id.x;
  let count = size[0] * size[1];
  if (i >= count) { return; }
  var sum = 0.0;
  for (var z = 0u; z < size[13]; z++) { sum += partial[z * count + i]; }
  store(i / size[1], i % size[1], 0u, sum);
}
