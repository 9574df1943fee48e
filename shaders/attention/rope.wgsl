// Splits qkv [T, ROW d] into q [T, H, d], k [T, K, d], v [T, K, d]; normalises each head of q and k, and of v, where
// enabled; rotates the pairs (i, i + R/2) of q and k, or (2i, 2i + 1) where INTERLEAVED, by the angle of their
// position; R = ROTARY of the d values. Queries are every QUERY_STEP-th head of a row from its beginning, keys and
// values the heads from KEYS and VALUES on; with ONLY_QUERIES there are neither. table [positions, R/2, 2]: cosine and
// sine, computed on the host in f64. One workgroup per token and head.
@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> positions: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> q: array<f32>;
#if ONLY_QUERIES
#if QK_NORM
@group(0) @binding(4) var<storage, read> q_norm: array<f32>;
#endif
#else
@group(0) @binding(4) var<storage, read_write> k: array<f32>;
@group(0) @binding(5) var<storage, read_write> v: array<f32>;
#if QK_NORM
@group(0) @binding(6) var<storage, read> q_norm: array<f32>;
@group(0) @binding(7) var<storage, read> k_norm: array<f32>;
#endif
#endif
#if QK_NORM
const WIDE = 1u;
fn total(v: f32) -> f32 { return v; }
#endif

const H = ${H}u;
const K = ${K}u;
const d = ${d}u;
const HALF = ${ROTARY}u / 2u;

#if QK_NORM
fn weight_of(is_query: bool, i: u32) -> f32 {
#if ONLY_QUERIES
  return q_norm[i];
#else
  if (is_query) { return q_norm[i]; }
  return k_norm[i];
#endif
}
#endif

fn write(is_query: bool, i: u32, value: f32) {
#if ONLY_QUERIES
  q[i] = value;
#else
  if (is_query) { q[i] = value; } else { k[i] = value; }
#endif
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {
  let lane = me.lane;
  let head = group.x; // 0..H queries, ..H+K keys, ..H+2K values
  let token = group.y;
#if !ONLY_QUERIES
  if (head >= H + K) {
    let from_v = (token * ${ROW}u + ${VALUES}u + head - H - K) * d;
    let to_v = (token * K + head - H - K) * d;
#if NORM_VALUES
    let value_norm = head_norm(from_v, d, me);
    for (var i = lane; i < d; i += ${THREADS}u) { v[to_v + i] = qkv[from_v + i] * value_norm.scale; }
#else
    for (var i = lane; i < d; i += ${THREADS}u) { v[to_v + i] = qkv[from_v + i]; }
#endif
    return;
  }
#endif
  let is_query = head < H;
  let index = select(head - H, head, is_query);
  let start = (token * ${ROW}u + select(${KEYS}u + index, index * ${QUERY_STEP}u, is_query)) * d;
#if QK_NORM
#if QK_WHOLE
  let norm = head_norm((token * ${ROW}u + select(H, 0u, is_query)) * d, select(K, H, is_query) * d, me);
#else
  let norm = head_norm(start, d, me);
#endif
#if QK_EACH
  let weights = index * d;
#else
  let weights = 0u;
#endif
#endif
  let angles = positions[token] * HALF;
  let to = select((token * K + index) * d, (token * H + index) * d, is_query);
  for (var i = lane; i < HALF; i += ${THREADS}u) {
#if INTERLEAVED
    let one = 2u * i;
    let two = 2u * i + 1u;
#else
    let one = i;
    let two = i + HALF;
#endif
    var a = qkv[start + one];
    var b = qkv[start + two];
#if QK_NORM
    a = (a - norm.mean) * norm.scale;
    b = (b - norm.mean) * norm.scale;
    a *= weight_of(is_query, weights + one);
    b *= weight_of(is_query, weights + two);
#endif
    let turn = table[angles + i];
    let first = a * turn.x - b * turn.y;
    let second = b * turn.x + a * turn.y;
    write(is_query, to + one, first);
    write(is_query, to + two, second);
  }
  for (var i = 2u * HALF + lane; i < d; i += ${THREADS}u) {
    var a = qkv[start + i];
#if QK_NORM
    a = (a - norm.mean) * norm.scale * weight_of(is_query, weights + i);
#endif
    write(is_query, to + i, a);
  }
}
