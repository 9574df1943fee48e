// dqkv[t, FIRST + head] from the gradient of one of q, k, v: turned back by the angle of the position (TURN), then through the
// normalisation of the head (NORM). gradient [T, HEADS, d], dqkv and qkv [T, ALL, d]. One workgroup a token and head.
@group(0) @binding(0) var<storage, read> gradient: array<f32>;
@group(0) @binding(1) var<storage, read_write> dqkv: array<f32>;
#if TURN
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read> table: array<vec2<f32>>;
#endif
#if NORM
@group(0) @binding(4) var<storage, read> qkv: array<f32>;
@group(0) @binding(5) var<storage, read> weight: array<f32>;
#endif

const d = ${d}u;
const HALF = ${ROTARY}u / 2u;

// Element i of the gradient, turned back.
fn turned(token: u32, source: u32, i: u32) -> f32 {
#if TURN
  if (i < HALF) {
    let angle = table[positions[token] * HALF + i];
    return gradient[source + i] * angle.x + gradient[source + i + HALF] * angle.y;
  }
  if (i < 2u * HALF) {
    let angle = table[positions[token] * HALF + i - HALF];
    return gradient[source + i] * angle.x - gradient[source + i - HALF] * angle.y;
  }
#endif
  return gradient[source + i];
}

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
  let token = group.y;
  let source = (token * ${HEADS}u + group.x) * d;
  let to = (token * ${ALL}u + ${FIRST}u + group.x) * d;
#if NORM
  var squares = 0.0;
  var products = 0.0;
  for (var i = lane; i < d; i += ${THREADS}u) {
    let x = qkv[to + i];
    squares += x * x;
    products += x * weight[i] * turned(token, source, i);
  }
  let square = reduce_sum(squares, lane, subgroup_lane, subgroup, subgroups);
  let product = reduce_sum(products, lane, subgroup_lane, subgroup, subgroups);
  let scale = inverseSqrt(square * ${INVERSE_D} + ${EPS});
  let along = product * ${INVERSE_D} * scale * scale * scale;
  for (var i = lane; i < d; i += ${THREADS}u) { dqkv[to + i] = scale * weight[i] * turned(token, source, i) - qkv[to + i] * along; }
#else
  for (var i = lane; i < d; i += ${THREADS}u) { dqkv[to + i] = turned(token, source, i); }
#endif
}
