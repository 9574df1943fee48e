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
// Rows in workgroup memory are padded by a vector, and rows of weights by a float, so that invocations which read the
// same place of neighbouring rows read different banks.
const ROW = D4 + 1u;
const WEIGHTS = TK + 1u;
const SHARE = ${SHARE}u; // invocations that share the weights of a query

#if SHARED_QUERIES
var<workgroup> queries: array<vec4<f32>, ${TQ_D4}>; // [TQ, D4]
#endif
var<workgroup> rows: array<vec4<f32>, ${TK_ROW}>; // [TK, ROW]
var<workgroup> weights: array<f32, ${TQ_WEIGHTS}>; // [TQ, WEIGHTS]
var<workgroup> peaks: array<f32, ${THREADS}>; // [TQ, SHARE]
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
  // Scores: an invocation computes those of one key and QUERIES queries.
  let key = lane % TK;
  let first_query = lane / TK * ${QUERIES}u;
  // Weights: SHARE invocations turn the scores of one query into weights. Each adds up its own.
  let own_query = lane / SHARE;
  let share = lane % SHARE;
  var peak = -1e30;
  var sum = 0.0;
#for o in OUTPUTS
  var output_${o} = vec4<f32>(0.0);
#end
  for (var start = begin; start <= last; start += TK) {
    workgroupBarrier();
    for (var i = lane; i < TK * D4; i += ${THREADS}u) {
      rows[i / D4 * ROW + i % D4] = key4((cache_row(base, min(start + i / D4, last)) * K + kv) * D4 + i % D4);
    }
    workgroupBarrier();
    if (first_query < TQ) {
#for u in QUERIES
      var raw_${u} = 0.0;
#if !SHARED_QUERIES
      let at_${u} = ((tile.x + min(first_query + ${u}u, count - 1u)) * H + head) * D4;
#endif
#end
#for c in D4
      {
        let row = rows[key * ROW + ${c}u];
#for u in QUERIES
#if SHARED_QUERIES
        raw_${u} += dot(queries[(first_query + ${u}u) * D4 + ${c}u], row);
#else
        raw_${u} += dot(q[at_${u} + ${c}u], row);
#endif
#end
      }
#end
#for u in QUERIES
      {
        let t = first_query + ${u}u;
        let position = first + t;
        var visible = start + key <= position && t < count;
        if (WINDOW > 0u) { visible = visible && start + key + WINDOW > position; }
        weights[t * WEIGHTS + key] = select(-1e30, score(raw_${u}, slope, position - start - key), visible);
      }
#end
    }
    workgroupBarrier();
    var own = peak;
    for (var j = share; j < TK; j += SHARE) { own = max(own, weights[own_query * WEIGHTS + j]); }
    peaks[lane] = own;
    for (var i = lane; i < TK * D4; i += ${THREADS}u) {
      rows[i / D4 * ROW + i % D4] = value4((cache_row(base, min(start + i / D4, last)) * K + kv) * D4 + i % D4);
    }
    workgroupBarrier();
    let old = peak;
    for (var s = 0u; s < SHARE; s++) { peak = max(peak, peaks[own_query * SHARE + s]); }
    let factor = exp(max(old - peak, -80.0));
    sum *= factor;
    for (var j = share; j < TK; j += SHARE) {
      let raw = weights[own_query * WEIGHTS + j];
      let w = select(0.0, exp(max(raw - peak, -80.0)), raw > -1e29);
      weights[own_query * WEIGHTS + j] = w;
      sum += w;
    }
    if (share == 0u) { rescale[own_query] = factor; }
    workgroupBarrier();
#for o in OUTPUTS
    let query_${o} = min((lane + ${o}u * ${THREADS}u) / D4, TQ - 1u);
    output_${o} *= rescale[query_${o}];
#end
#if ONE_COLUMN
    // All vectors of y that an invocation owns are in one column.
    for (var j = 0u; j < TK; j++) {
      let value = rows[j * ROW + lane % D4];
#for o in OUTPUTS
      output_${o} += weights[query_${o} * WEIGHTS + j] * value;
#end
    }
#else
    for (var j = 0u; j < TK; j++) {
#for o in OUTPUTS
      output_${o} += weights[query_${o} * WEIGHTS + j] * rows[j * ROW + (lane + ${o}u * ${THREADS}u) % D4];
#end
    }
#endif
  }
  workgroupBarrier();
  peaks[lane] = sum;
  workgroupBarrier();
  if (share == 0u) {
    for (var s = 1u; s < SHARE; s++) { sum += peaks[lane + s]; }
    rescale[own_query] = sum;
  }
  workgroupBarrier();
#for o in OUTPUTS
  {
    let i = lane + ${o}u * ${THREADS}u;
    let t = i / D4;
    if (i < TQ * D4 && t < count) { y[((tile.x + t) * H + head) * D4 + i % D4] = output_${o} / rescale[t]; }
  }
#end
}
