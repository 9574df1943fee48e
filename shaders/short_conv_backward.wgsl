// dx (+)= the gradient of short_conv.wgsl's x, for sequences that begin within the step (at position 0) and stand one after the other.
// One invocation: one number of dx [T, W]; columns that the convolution does not read get zero.
// With s[t] = Σ_a w[a] u[t - a] (+ bias), w by age, and y = s gate (GATED) or silu(s):   du[t] = Σ_a w[a] ds[t + a].
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;
@group(0) @binding(5) var<storage, read> size: vec4<u32>; // T, invocations in x, W
#if BIAS
@group(0) @binding(6) var<storage, read> bias: array<f32>;
#endif

const C = ${C}u;
const KERNEL = ${KERNEL}u;
const FIRST = ${FIRST}u;

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
  for (var age = 0u; age < min(KERNEL, positions[t] + 1u); age++) { sum += weight[c * KERNEL + KERNEL - 1u - age] * carried(t - age, c); }
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

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i >= size.x * size.z) { return; }
  let t = i / size.z;
  let column = i % size.z;
  var gradient = 0.0;
  if (column >= FIRST && column < FIRST + ${READ}u) {
    let c = (column - FIRST) % C;
    let part = (column - FIRST) / C;
#if GATED
    if (part == 1u) {
      gradient = dy[t * C + c] * sum_at(t, c);
    } else {
#endif
      for (var age = 0u; age < KERNEL; age++) {
        // Where a token so much later belongs to the same sequence.
        if (t + age < size.x) {
          if (positions[t + age] >= age) { gradient += weight[c * KERNEL + KERNEL - 1u - age] * slope_at(t + age, c); }
        }
      }
#if GATED
      gradient *= x[t * size.z + FIRST + c + select(0u, 2u * C, part == 0u)];
    }
#endif
  }
#if ADD
  dx[i] += gradient;
#else
  dx[i] = gradient;
#endif
}
