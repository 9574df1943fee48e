// For each pair p: z = β ((chosen - rejected) - (reference chosen - reference rejected)), loss -ln σ(z); for each row
// the weight of its gradient. sequence_of_row[r] = 2 p, + 1 for the rejected answer; larger values: a row of no answer.
// One workgroup.
@group(0) @binding(0) var<storage, read> statistics: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> sequence_of_row: array<u32>;
@group(0) @binding(2) var<storage, read> reference: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> settings: array<f32>; // β, scale of loss and gradient
@group(0) @binding(4) var<storage, read_write> nll: array<f32>;
@group(0) @binding(5) var<storage, read_write> weights: array<f32>;
@group(0) @binding(6) var<storage, read_write> pairs: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> loss: array<f32>;

@compute @workgroup_size(${THREADS})
fn main(me: Invocation) {
  let lane = me.lane;
  var total = 0.0;
  for (var p = 0u; p < ${P}u; p++) {
    var chosen = 0.0;
    var rejected = 0.0;
    for (var r = lane; r < ${R}u; r += ${THREADS}u) {
      let known = statistics[r];
      let value = select(known.x + log(known.y) - known.z, 0.0, sequence_of_row[r] == 0xffffffffu);
      if (p == 0u) { nll[r] = value; weights[r] = 0.0; }
      if (sequence_of_row[r] == 2u * p) { chosen -= value; }
      if (sequence_of_row[r] == 2u * p + 1u) { rejected -= value; }
    }
    chosen = reduce_sum(chosen, me);
    rejected = reduce_sum(rejected, me);
    let z = settings[0] * ((chosen - rejected) - (reference[p].x - reference[p].y));
    let part = max(-z, 0.0) + log(1.0 + exp(max(-abs(z), -80.0)));
    let slope = settings[1] * settings[0] / (1.0 + exp(clamp(z, -80.0, 80.0)));
    for (var r = lane; r < ${R}u; r += ${THREADS}u) {
      if (sequence_of_row[r] == 2u * p) { weights[r] = slope; }
      if (sequence_of_row[r] == 2u * p + 1u) { weights[r] = -slope; }
    }
    if (lane == 0u) { pairs[p] = vec4<f32>(chosen, rejected, z, part); }
    total += part * settings[1];
  }
  if (lane == 0u) { loss[0] = total; loss[1] = 0.0; loss[2] = 0.0; loss[3] = 0.0; }
}
