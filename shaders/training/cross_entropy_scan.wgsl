// statistics[r] = (maximum, Σ exp(logit - maximum), logit of the target), over all chunks of the vocabulary so far.
// logits [R, C] of the vocabulary entries from OFFSET on; one workgroup per row.
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read_write> statistics: array<vec4<f32>>;

const C = ${C}u;
// The range of columns that this dispatch reads.
const BEGIN = ${BEGIN}u;
const END = ${END}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {
  let lane = me.lane;
  let start = group.x * C;
  var highest = -1e30;
  for (var i = BEGIN + lane; i < END; i += ${THREADS}u) { highest = max(highest, logits[start + i]); }
  highest = reduce_max(highest, me);
#if FIRST
  var known = vec4<f32>(-1e30, 0.0, 0.0, 0.0);
#else
  var known = statistics[group.x];
#endif
  let peak = max(highest, known.x);
  var sum = 0.0;
  for (var i = BEGIN + lane; i < END; i += ${THREADS}u) { sum += exp(max(logits[start + i] - peak, -80.0)); }
  sum = reduce_sum(sum, me);
  if (lane == 0u) {
    let at = targets[group.x] - ${OFFSET}u;
    if (targets[group.x] >= ${OFFSET}u && at >= BEGIN && at < END) { known.z = logits[start + at]; }
    statistics[group.x] = vec4<f32>(peak, known.y * exp(max(known.x - peak, -80.0)) + sum, known.z, 0.0);
  }
}
