// dqkv[t, FIRST + STEP head] from the gradient of one of q, k, v: rotated back by the angle of the position (TURN),
// then differentiated through the normalisation of the head (NORM), or of all HEADS together (WHOLE), with weights
// (WEIGHTED) or without. ADD: to what an earlier dispatch wrote. GATED: the head after this one becomes zero. gradient
// [T, HEADS, d], dqkv and qkv [T, ALL, d]. One workgroup per token and head.
@group(0) @binding(0) var<storage, read> gradient: array<f32>;
@group(0) @binding(1) var<storage, read_write> dqkv: array<f32>;
#if TURN
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read> table: array<vec2<f32>>;
#endif
#if NORM
@group(0) @binding(${QKV}) var<storage, read> qkv: array<f32>;
#endif
#if WEIGHTED
@group(0) @binding(5) var<storage, read> weight: array<f32>;
#endif
#if PARTS
@group(0) @binding(6) var<storage, read_write> parts: array<f32>; // gradient times normalised value, [T, HEADS, d]
#endif

const d = ${d}u;
const HALF = ${ROTARY}u / 2u;

fn weight_of(i: u32) -> f32 {
#if WEIGHTED
  return weight[i];
#else
  return 1.0;
#endif
}

fn write(i: u32, value: f32) {
#if ADD
  dqkv[i] += value;
#else
  dqkv[i] = value;
#endif
}

// Element i of a head's gradient, rotated back.
fn unrotated(token: u32, source: u32, i: u32) -> f32 {
#if TURN
  if (i < 2u * HALF) {
#if INTERLEAVED
    let angle = table[positions[token] * HALF + i / 2u];
    let even = i % 2u == 0u;
    let other = gradient[source + select(i - 1u, i + 1u, even)];
#else
    let angle = table[positions[token] * HALF + i % max(HALF, 1u)];
    let even = i < HALF;
    let other = gradient[source + select(i - HALF, i + HALF, even)];
#endif
    return gradient[source + i] * angle.x + select(-other, other, even) * angle.y;
  }
#endif
  return gradient[source + i];
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {
  let lane = me.lane;
  let token = group.y;
  let source = (token * ${HEADS}u + group.x) * d;
  let to = (token * ${ALL}u + ${FIRST}u + ${STEP}u * group.x) * d;
#if GATED
  for (var i = lane; i < d; i += ${THREADS}u) { dqkv[to + d + i] = 0.0; }
#endif
#if NORM
#if WHOLE
  let head = 0u;
  let many = ${HEADS}u * d;
#else
  let head = group.x;
  let many = d;
#endif
  let all = (token * ${ALL}u + ${FIRST}u + ${STEP}u * head) * d;
  let gradients = (token * ${HEADS}u + head) * d;
#if EACH
  let weights = head * d;
  let own = group.x * d;
#else
  let weights = 0u;
  let own = 0u;
#endif
  var mean = 0.0;
#if MEAN
  var sum = 0.0;
  for (var i = lane; i < many; i += ${THREADS}u) { sum += qkv[all + i]; }
  mean = reduce_sum(sum, me) / f32(many);
  var pulls = 0.0;
#endif
  var squares = 0.0;
  var products = 0.0;
  for (var i = lane; i < many; i += ${THREADS}u) {
    let x = qkv[all + i] - mean;
    let pull = weight_of(weights + i) * unrotated(token, gradients + i / d * d, i % d);
    squares += x * x;
    products += x * pull;
#if MEAN
    pulls += pull;
#endif
  }
  let square = reduce_sum(squares, me);
  let product = reduce_sum(products, me);
  var plain = 0.0;
#if MEAN
  plain = reduce_sum(pulls, me) / f32(many);
#endif
  let scale = inverseSqrt(square / f32(many) + ${EPS});
  let along = product / f32(many) * scale * scale * scale;
  for (var i = lane; i < d; i += ${THREADS}u) {
#if PARTS
    parts[source + i] = unrotated(token, source, i) * (qkv[to + i] - mean) * scale;
#endif
    write(to + i, scale * (weight_of(own + i) * unrotated(token, source, i) - plain) - (qkv[to + i] - mean) * along);
  }
#else
  for (var i = lane; i < d; i += ${THREADS}u) { write(to + i, unrotated(token, source, i)); }
#endif
}
