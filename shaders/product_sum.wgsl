// c[m, n] (+)= ALPHA Σ_z partial[z, m, n], in the order of z.
@group(0) @binding(0) var<storage, read> partial: array<f32>;
@group(0) @binding(1) var<storage, read_write> c: array<f32>;
@group(0) @binding(2) var<storage, read> size: array<u32>; // as in product.wgsl

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * ${STRIDE}u + id.x;
  let count = size[0] * size[1];
  if (i >= count) { return; }
  var sum = 0.0;
  for (var z = 0u; z < size[13]; z++) { sum += partial[z * count + i]; }
  let m = i / size[1];
  let n = i % size[1];
#if PACKED
  let at = size[10] + m / 32u * size[11] + n / 4u * 128u + m % 32u * 4u + n % 4u;
#else
  let at = size[10] + m * size[11] + n * size[12];
#endif
#if ADD
  c[at] += ${ALPHA} * sum;
#else
  c[at] = ${ALPHA} * sum;
#endif
}
