// Causal attention of many tokens, flash style: one workgroup handles TQ tokens of one sequence and one query head, and
// loops over the sequence's cached rows in tiles of TK keys, with a running maximum and sum. q [T, H, d]; cache [rows,
// K, d]; y [T, H, d]; tiles: (first token, number of tokens), each of one sequence.
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k_cache: array<${CACHE}>;
@group(0) @binding(2) var<storage, read> v_cache: array<${CACHE}>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> bases: array<u32>;
@group(0) @binding(5) var<storage, read> tiles: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<f32>>;

const H = ${H}u;
const K = ${K}u;
const D4 = ${d}u / 4u;
const TQ = ${TQ}u;
const TK = ${TK}u;
const WINDOW = ${WINDOW}u; // 0: none
const OUTPUTS = ${OUTPUTS}u; // vectors of y that one invocation owns

#if SHARED_QUERIES
var<workgroup> queries: array<vec4<f32>, ${TQ_D4}>;
#endif
var<workgroup> rows: array<vec4<f32>, ${TK_D4}>;
var<workgroup> weights: array<f32, ${TQ_TK}>;
var<workgroup> peaks: array<f32, ${TQ}>;
var<workgroup> sums: array<f32, ${TQ}>;
var<workgroup> rescale: array<f32, ${TQ}>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let head = group.x;
  let kv = head / (H / K);
  let tile = tiles[group.y];
  let count = tile.y;
  if (count == 0u) { return; }
  let base = bases[tile.x];
  let first = positions[tile.x];
  let last = first + count - 1u;
  var begin = 0u;
  if (WINDOW > 0u && first + 1u > WINDOW) { begin = first + 1u - WINDOW; }
#if SHARED_QUERIES
  for (var i = lane; i < TQ * D4; i += ${THREADS}u) {
    let t = min(i / D4, count - 1u);
    queries[i] = q[((tile.x + t) * H + head) * D4 + i % D4];
  }
#endif
  let slope = alibi_slope(head);
  if (lane < TQ) { peaks[lane] = -1e30; sums[lane] = 0.0; }
  var outputs: array<vec4<f32>, ${OUTPUTS}>;
  for (var start = begin; start <= last; start += TK) {
    workgroupBarrier();
    for (var i = lane; i < TK * D4; i += ${THREADS}u) {
      rows[i] = key4((cache_row(base, min(start + i / D4, last)) * K + kv) * D4 + i % D4);
    }
    workgroupBarrier();
    for (var i = lane; i < TQ * TK; i += ${THREADS}u) {
      let t = i / TK;
      let key = i % TK;
      var sum = 0.0;
#if SHARED_QUERIES
#for c in D4
      sum += dot(queries[t * D4 + ${c}u], rows[key * D4 + ${c}u]);
#end
#else
      let at = ((tile.x + min(t, count - 1u)) * H + head) * D4;
#for c in D4
      sum += dot(q[at + ${c}u], rows[key * D4 + ${c}u]);
#end
#endif
      let position = first + t;
      var visible = start + key <= position && t < count;
      if (WINDOW > 0u) { visible = visible && start + key + WINDOW > position; }
      weights[i] = select(-1e30, score(sum, slope, position - start - key), visible);
    }
    workgroupBarrier();
    if (lane < TQ) {
      let old = peaks[lane];
      var peak = old;
      for (var j = 0u; j < TK; j++) { peak = max(peak, weights[lane * TK + j]); }
      var sum = 0.0;
      for (var j = 0u; j < TK; j++) {
        let raw = weights[lane * TK + j];
        let w = select(0.0, exp(max(raw - peak, -80.0)), raw > -1e29);
        weights[lane * TK + j] = w;
        sum += w;
      }
      let factor = exp(max(old - peak, -80.0));
      rescale[lane] = factor;
      sums[lane] = sums[lane] * factor + sum;
      peaks[lane] = peak;
    }
    for (var i = lane; i < TK * D4; i += ${THREADS}u) {
      rows[i] = value4((cache_row(base, min(start + i / D4, last)) * K + kv) * D4 + i % D4);
    }
    workgroupBarrier();
    for (var o = 0u; o < OUTPUTS; o++) {
      let i = lane + o * ${THREADS}u;
      if (i < TQ * D4) {
        let t = i / D4;
        let c = i % D4;
        var sum = outputs[o] * rescale[t];
#for j in TK
        sum += weights[t * TK + ${j}u] * rows[${j}u * D4 + c];
#end
        outputs[o] = sum;
      }
    }
  }
  workgroupBarrier();
  for (var o = 0u; o < OUTPUTS; o++) {
    let i = lane + o * ${THREADS}u;
    let t = i / D4;
    if (i < TQ * D4 && t < count) { y[((tile.x + t) * H + head) * D4 + i % D4] = outputs[o] / sums[t]; }
  }
}
