// Attention of single tokens over the cache, split along the cached positions (flash decoding). One workgroup: one key-value head,
// one token, one run of SPLIT positions, all G query heads of the group, so that keys and values are read once.
// q [T, H, d]; cache [rows, K, d]; partial [T, splits, H, d + 2]: the weighted values, then the maximum and the sum of weights.
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k_cache: array<${CACHE}>;
@group(0) @binding(2) var<storage, read> v_cache: array<${CACHE}>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> bases: array<u32>;
@group(0) @binding(5) var<storage, read_write> partial: array<f32>;

const H = ${H}u;
const K = ${K}u;
const G = ${H}u / ${K}u;
const D4 = ${d}u / 4u;
const SPLIT = ${SPLIT}u;
const WINDOW = ${WINDOW}u; // 0: none
const MAX_SPLITS = ${MAX_SPLITS}u;

var<workgroup> weights: array<f32, ${G_SPLIT}>; // [G, SPLIT]

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {
  let lane = me.lane;
  let kv = group.x;
  let split = group.y;
  let token = group.z;
  let position = positions[token];
  let base = bases[token];
  // Runs that this token has not reached are not read either.
  if (split * SPLIT > position) { return; }
  let end = min((split + 1u) * SPLIT, position + 1u);
  var begin = split * SPLIT;
  if (WINDOW > 0u && position + 1u > WINDOW) { begin = max(begin, position + 1u - WINDOW); }
  if (begin >= end) {
    // Nothing of this run is visible: an empty part, which the sum over the runs ignores.
    for (var g = lane; g < G; g += ${THREADS}u) {
      let to = ((token * MAX_SPLITS + split) * H + kv * G + g) * (D4 * 4u + 2u) + D4 * 4u;
      partial[to] = -1e30;
      partial[to + 1u] = 0.0;
    }
    return;
  }
  let count = end - begin;
  let query = (token * H + kv * G) * D4;
#for g in G
  let slope_${g} = alibi_slope(kv * G + ${g}u);
#end
  for (var i = lane; i < count; i += ${THREADS}u) {
    let row = (cache_row(base, begin + i) * K + kv) * D4;
    // One name a head: SwiftShader loses what is stored in an array of a loop's body.
#for g in G
    var sum_${g} = 0.0;
#end
    for (var c = 0u; c < D4; c++) {
      let key = key4(row + c);
#for g in G
      sum_${g} += dot(q[query + ${g}u * D4 + c], key);
#end
    }
#for g in G
    weights[${g}u * SPLIT + i] = score(sum_${g}, slope_${g}, position - begin - i);
#end
  }
  workgroupBarrier();
  for (var g = 0u; g < G; g++) {
    var peak = -1e30;
    for (var i = lane; i < count; i += ${THREADS}u) { peak = max(peak, weights[g * SPLIT + i]); }
    peak = reduce_max(peak, me);
    var sum = 0.0;
    for (var i = lane; i < count; i += ${THREADS}u) {
      let w = exp(max(weights[g * SPLIT + i] - peak, -80.0));
      weights[g * SPLIT + i] = w;
      sum += w;
    }
    sum = reduce_sum(sum, me);
    if (lane == 0u) {
      let to = ((token * MAX_SPLITS + split) * H + kv * G + g) * (D4 * 4u + 2u) + D4 * 4u;
      partial[to] = peak;
      partial[to + 1u] = sum;
    }
  }
  workgroupBarrier();
  for (var c = lane; c < D4; c += ${THREADS}u) {
#for g in G
    var sum_${g} = vec4<f32>(0.0);
#end
    for (var i = 0u; i < count; i++) {
      let value = value4((cache_row(base, begin + i) * K + kv) * D4 + c);
#for g in G
      sum_${g} += weights[${g}u * SPLIT + i] * value;
#end
    }
    var to = ((token * MAX_SPLITS + split) * H + kv * G) * (D4 * 4u + 2u) + c * 4u;
#for g in G
    partial[to] = sum_${g}.x;
    partial[to + 1u] = sum_${g}.y;
    partial[to + 2u] = sum_${g}.z;
    partial[to + 3u] = sum_${g}.w;
    to += D4 * 4u + 2u;
#end
  }
}
