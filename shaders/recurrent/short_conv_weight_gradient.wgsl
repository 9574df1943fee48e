// The gradient of recurrent/short_conv.wgsl's weight for each token: products[t, c, j] = ds[t, c] u[t - (KERNEL - 1 -
// j), c]; and ds itself, for the bias. One invocation per channel and token.
@group(0) @binding(4) var<storage, read_write> slopes: array<f32>;
@group(0) @binding(${PRODUCT_AT}) var<storage, read_write> products: array<f32>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i >= size.x * C) { return; }
  let t = i / C;
  let c = i % C;
  let slope = slope_at(t, c);
  slopes[i] = slope;
  for (var age = 0u; age < KERNEL; age++) {
    var product = 0.0;
    if (positions[t] >= age) { product = slope * carried(t - age, c); }
    products[i * KERNEL + KERNEL - 1u - age] = product;
  }
}
