// nll[r] = maximum + ln(sum) - logit of the target; loss = (Σ weights[r] nll[r], Σ nll[r], 0, 0).   One workgroup.
@group(0) @binding(0) var<storage, read> statistics: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> nll: array<f32>;
@group(0) @binding(4) var<storage, read_write> loss: array<f32>;

@compute @workgroup_size(${THREADS})
fn main(me: Invocation) {
  let lane = me.lane;
  var weighted = 0.0;
  var plain = 0.0;
  for (var r = lane; r < ${R}u; r += ${THREADS}u) {
    let known = statistics[r];
    let value = select(known.x + log(known.y) - known.z, 0.0, targets[r] == 0xffffffffu);
    nll[r] = value;
    weighted += weights[r] * value;
    plain += value;
  }
  weighted = reduce_sum(weighted, me);
  plain = reduce_sum(plain, me);
  if (lane == 0u) { loss[0] = weighted; loss[1] = plain; loss[2] = 0.0; loss[3] = 0.0; }
}
