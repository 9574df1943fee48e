// dx (+)= the gradient of recurrent/short_conv.wgsl's x.   One invocation per value of dx [T, W]; columns that the
// convolution does not read get zero. du[t] = Σ_a w[a] ds[t + a].
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;

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
        // Only if token t + age belongs to the same sequence.
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
