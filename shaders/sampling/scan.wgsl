// First pass over the logits of each row: adds the bias, applies the penalties for tokens seen before, and finds each
// chunk's maximum. logits [R, V] in place; counts [R, V]: how often each token has been seen; peaks [R, chunks, 2]:
// value and id. settings [R, 16]: see lib/sample.wgsl.
@group(0) @binding(0) var<storage, read_write> logits: array<${VEC}>;
@group(0) @binding(1) var<storage, read> counts: array<${COUNTS}>;
@group(0) @binding(2) var<storage, read> bias: array<${VEC}>;
@group(0) @binding(3) var<storage, read> settings: array<f32>;
@group(0) @binding(4) var<storage, read_write> peaks: array<vec2<u32>>;

const V = ${V}u;
const CHUNK = ${CHUNK}u;
const CHUNKS = ${CHUNKS}u;

var<workgroup> best_value: array<f32, ${THREADS}>;
var<workgroup> best_id: array<u32, ${THREADS}>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.y;
  let repeat = settings[row * 16u + 4u];
  let presence = settings[row * 16u + 5u];
  let frequency = settings[row * 16u + 6u];
  let adjust = settings[row * 16u + 7u] != 0.0;
  let end = min((group.x + 1u) * CHUNK, V);
  var value = -3.4e38;
  var id = end;
  // The smaller id wins a tie, independent of the order of the invocations.
#if SCALAR
  for (var i = group.x * CHUNK + lane; i < end; i += ${THREADS}u) {
    let at = row * V + i;
    var l = logits[at];
    if (adjust) {
      l += bias[at];
      let seen = counts[at];
      let repeated = select(l * repeat, l / repeat, l > 0.0) - (presence + frequency * f32(seen));
      l = select(l, repeated, seen > 0u);
      logits[at] = l;
    }
    if (l > value) { value = l; id = i; }
  }
#else
  for (var i = group.x * CHUNK / 4u + lane; i < end / 4u; i += ${THREADS}u) {
    let at = row * (V / 4u) + i;
    var l = logits[at];
    if (adjust) {
      l += bias[at];
      let seen = counts[at];
      let repeated = select(l * repeat, l / repeat, l > vec4<f32>(0.0)) - (presence + frequency * vec4<f32>(seen));
      l = select(l, repeated, seen > vec4<u32>(0u));
      logits[at] = l;
    }
#for c in 4
    if (l[${c}] > value) { value = l[${c}]; id = i * 4u + ${c}u; }
#end
  }
#endif
  best_value[lane] = value;
  best_id[lane] = id;
  workgroupBarrier();
#if TREE
  for (var half = ${THREADS}u / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      let other = lane + half;
      if (best_value[other] > value || (best_value[other] == value && best_id[other] < id)) {
        value = best_value[other];
        id = best_id[other];
        best_value[lane] = value;
        best_id[lane] = id;
      }
    }
    workgroupBarrier();
  }
  if (lane == 0u) { peaks[row * CHUNKS + group.x] = vec2<u32>(bitcast<u32>(value), id); }
#else
  if (lane == 0u) {
    for (var t = 1u; t < ${THREADS}u; t++) {
      if (best_value[t] > value || (best_value[t] == value && best_id[t] < id)) {
        value = best_value[t];
        id = best_id[t];
      }
    }
    peaks[row * CHUNKS + group.x] = vec2<u32>(bitcast<u32>(value), id);
  }
#endif
}
