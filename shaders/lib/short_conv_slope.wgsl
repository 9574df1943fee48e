// Shared by the gradients of recurrent/short_conv.wgsl, for sequences that begin within the step (at position 0) and
// are consecutive. With s[t] = Σ_a w[a] u[t - a] (+ bias), w indexed by age, y is s gate (GATED) or silu(s).
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read> size: vec4<u32>; // T, invocations in x, W
#if BIAS
@group(0) @binding(6) var<storage, read> bias: array<f32>;
#endif

const C = ${C}u;
const KERNEL = ${KERNEL}u;
const FIRST = ${FIRST}u;

// u[t]
fn carried(t: u32, c: u32) -> f32 {
  let at = t * size.z + FIRST + c;
#if GATED
  return x[at] * x[at + 2u * C];
#else
  return x[at];
#endif
}

fn sum_at(t: u32, c: u32) -> f32 {
  var sum = 0.0;
#if BIAS
  sum = bias[c];
#endif
  for (var age = 0u; age < min(KERNEL, positions[t] + 1u); age++) {
    sum += weight[c * KERNEL + KERNEL - 1u - age] * carried(t - age, c);
  }
  return sum;
}

// ds[t]
fn slope_at(t: u32, c: u32) -> f32 {
#if GATED
  return dy[t * C + c] * x[t * size.z + FIRST + C + c];
#else
  return dy[t * C + c] * activate_slope(sum_at(t, c));
#endif
}
