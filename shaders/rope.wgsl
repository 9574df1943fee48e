// Splits qkv [T, (H + 2K) d] into q [T, H, d], k [T, K, d], v [T, K, d]; normalises each head of q and k when asked (RMS over d);
// turns pairs (i, i + R/2) of q and k by the angle of their position, R = ROTARY of the d values. One workgroup a token and head.
// table [positions, R/2, 2]: cosine and sine, made on the host in f64.
@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> positions: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> q: array<f32>;
@group(0) @binding(4) var<storage, read_write> k: array<f32>;
@group(0) @binding(5) var<storage, read_write> v: array<f32>;
#if QK_NORM
@group(0) @binding(6) var<storage, read> q_norm: array<f32>;
@group(0) @binding(7) var<storage, read> k_norm: array<f32>;
#endif

const H = ${H}u;
const K = ${K}u;
const d = ${d}u;
const HALF = ${ROTARY}u / 2u;

@compute @workgroup_size(${THREADS})
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
#if SUBGROUPS
  @builtin(subgroup_invocation_id) subgroup_lane: u32,
  @builtin(subgroup_id) subgroup: u32,
  @builtin(num_subgroups) subgroups: u32,
#endif
) {
#if !SUBGROUPS
  let subgroup_lane = 0u; let subgroup = 0u; let subgroups = 1u;
#endif
  let head = group.x; // 0..H queries, ..H+K keys, ..H+2K values
  let token = group.y;
  let start = (token * (H + 2u * K) + head) * d;
  if (head >= H + K) {
    let to = (token * K + head - H - K) * d;
    for (var i = lane; i < d; i += ${THREADS}u) { v[to + i] = qkv[start + i]; }
    return;
  }
  var scale = 1.0;
#if QK_NORM
  var sum = 0.0;
  for (var i = lane; i < d; i += ${THREADS}u) { let value = qkv[start + i]; sum += value * value; }
  scale = inverseSqrt(reduce_sum(sum, lane, subgroup_lane, subgroup, subgroups) * ${INVERSE_D} + ${EPS});
#endif
  let angles = positions[token] * HALF;
  let is_query = head < H;
  let to = select((token * K + head - H) * d, (token * H + head) * d, is_query);
  for (var i = lane; i < HALF; i += ${THREADS}u) {
    var a = qkv[start + i] * scale;
    var b = qkv[start + i + HALF] * scale;
#if QK_NORM
    a *= select(k_norm[i], q_norm[i], is_query);
    b *= select(k_norm[i + HALF], q_norm[i + HALF], is_query);
#endif
    let turn = table[angles + i];
    let first = a * turn.x - b * turn.y;
    let second = b * turn.x + a * turn.y;
    if (is_query) { q[to + i] = first; q[to + i + HALF] = second; } else { k[to + i] = first; k[to + i + HALF] = second; }
  }
  for (var i = 2u * HALF + lane; i < d; i += ${THREADS}u) {
    var a = qkv[start + i] * scale;
#if QK_NORM
    a *= select(k_norm[i], q_norm[i], is_query);
#endif
    if (is_query) { q[to + i] = a; } else { k[to + i] = a; }
  }
}
