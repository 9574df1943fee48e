// norm = (√Σ partial, factor), where the factor clips to the limit and removes the loss scale: limit / (norm + 1e-6),
// but at most 1 (1 without a limit), times hyper[7].   One workgroup.
@group(0) @binding(0) var<storage, read> partial: array<f32>;
@group(0) @binding(1) var<storage, read> hyper: array<f32>;
@group(0) @binding(2) var<storage, read_write> norm: array<f32>;

@compute @workgroup_size(${THREADS})
fn main(me: Invocation) {
  let lane = me.lane;
  var sum = 0.0;
  for (var i = lane; i < ${PARTS}u; i += ${THREADS}u) { sum += partial[i]; }
  sum = sqrt(reduce_sum(sum, me));
  if (lane == 0u) {
    norm[0] = sum;
    norm[1] = select(1.0, min(hyper[6] / (sum + 1e-6), 1.0), hyper[6] > 0.0) * hyper[7];
  }
}
