// As attention_merge, for hardware: all invocations share the runs. One workgroup per token, head and 32 pairs of
// elements; 8 sets of 32 invocations take every eighth run, several of them at a time.
@group(0) @binding(0) var<storage, read> partial: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> positions: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec2<f32>>;

const H = ${H}u;
const D2 = ${d}u / 2u;
const SPLIT = ${SPLIT}u;
const MAX_SPLITS = ${MAX_SPLITS}u;
const COLUMNS = 32u;
const SLOTS = ${THREADS}u / COLUMNS;

var<workgroup> parts: array<vec2<f32>, ${THREADS}>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {
  let head = group.x;
  let token = group.y;
  let lane = me.lane;
  let splits = positions[token] / SPLIT + 1u;
  let start = (token * MAX_SPLITS * H + head) * (D2 + 1u);
  let stride = H * (D2 + 1u);
  // x: the largest score of a run, y: its sum of weights.
  var peak = -1e30;
  for (var s = lane; s < splits; s += ${THREADS}u) { peak = max(peak, partial[start + s * stride + D2].x); }
  peak = reduce_max(peak, me);
  var total = 0.0;
  for (var s = lane; s < splits; s += ${THREADS}u) {
    let run = partial[start + s * stride + D2];
    total += exp(max(run.x - peak, -80.0)) * run.y;
  }
  total = reduce_sum(total, me);
  let column = group.z * COLUMNS + lane % COLUMNS;
  let c = min(column, D2 - 1u);
  var sum = vec2<f32>(0.0);
  for (var s = lane / COLUMNS; s < splits; s += SLOTS * ${RUNS}u) {
#for u in RUNS
    let s_${u} = s + ${u}u * SLOTS;
    let at_${u} = start + min(s_${u}, splits - 1u) * stride;
    let run_${u} = partial[at_${u} + D2];
    let value_${u} = partial[at_${u} + c];
#end
    // For an empty run no values were written: its sum of weights is zero, and what its memory holds must not count.
#for u in RUNS
    if (s_${u} < splits && run_${u}.y > 0.0) { sum += exp(max(run_${u}.x - peak, -80.0)) * value_${u}; }
#end
  }
  parts[lane] = sum;
  workgroupBarrier();
  if (lane < COLUMNS && column < D2) {
    for (var s = 1u; s < SLOTS; s++) { sum += parts[s * COLUMNS + lane]; }
    y[(token * H + head) * D2 + column] = sum / total;
  }
}
