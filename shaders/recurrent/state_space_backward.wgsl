// Those parts of the gradient of recurrent/state_space.wgsl that are no matrix products, one PART per kernel;
// ops/recurrent/state_space_backward.rs explains them. T tokens, H heads of P channels, G groups with N values of B and
// C; W and M: widths of projection and mixed. steps [T, 2H]: δ, then the sum of δ A over the sequence's tokens up to
// this one. Sequences begin at position 0.
const H = ${H}u;
const P = ${P}u;
const INNER = H * P;
const W = ${W}u;
const M = ${M}u;

fn logistic(v: f32) -> f32 { return 1.0 / (1.0 + exp(clamp(-v, -80.0, 80.0))); }

#if PART == steps
@group(0) @binding(0) var<storage, read> projection: array<f32>;
@group(0) @binding(1) var<storage, read> constants: array<f32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read_write> steps: array<f32>;
@group(0) @binding(4) var<storage, read> size: vec4<u32>;

// One invocation per head, looping over the tokens.
fn run(head: u32) {
  var sum = 0.0;
  for (var t = 0u; t < size.z; t++) {
    let raw = projection[t * W + ${STEPS}u + head] + constants[2u * H + head];
    let delta = max(raw, 0.0) + log(1.0 + exp(-abs(raw)));
    sum = select(sum, 0.0, positions[t] == 0u) + delta * constants[head];
    steps[t * 2u * H + head] = delta;
    steps[t * 2u * H + H + head] = sum;
  }
}
#endif
#if PART == scaled
@group(0) @binding(0) var<storage, read> mixed: array<f32>;
@group(0) @binding(1) var<storage, read> projection: array<f32>;
@group(0) @binding(2) var<storage, read> steps: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> scaled: array<f32>; // δ x [T, H P]
@group(0) @binding(5) var<storage, read_write> slope: array<f32>; // dy silu(z) scale [T, H P]
@group(0) @binding(6) var<storage, read> size: vec4<u32>;

fn run(i: u32) {
  let t = i / INNER;
  let index = i % INNER;
  let z = projection[t * W + index];
  scaled[i] = steps[t * 2u * H + index / P] * mixed[t * M + index];
  slope[i] = dy[i] * z * logistic(z) * ${OUTPUT_SCALE};
}
#endif
#if PART == decay
@group(0) @binding(0) var<storage, read> matches: array<f32>; // C[t] · B[s] [T, T]
@group(0) @binding(1) var<storage, read> slopes: array<f32>; // slope[t] · scaled[s] [T, T]
@group(0) @binding(2) var<storage, read> steps: array<f32>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read_write> decayed_matches: array<f32>;
@group(0) @binding(5) var<storage, read_write> decayed_slopes: array<f32>;
@group(0) @binding(6) var<storage, read> size: vec4<u32>;

fn run(i: u32) {
  let t = i / size.z;
  let s = i % size.z;
  var decay = 0.0;
  if (s <= t) {
    if (positions[t] >= t - s) {
      decay = exp(clamp(steps[(t * 2u + 1u) * H + ${HEAD}u] - steps[(s * 2u + 1u) * H + ${HEAD}u], -80.0, 0.0));
    }
  }
  decayed_matches[i] = decay * matches[i];
  decayed_slopes[i] = decay * slopes[i];
}
#endif
#if PART == sums
@group(0) @binding(0) var<storage, read> mixed: array<f32>;
@group(0) @binding(1) var<storage, read> steps: array<f32>;
@group(0) @binding(2) var<storage, read> slope: array<f32>;
@group(0) @binding(3) var<storage, read> out: array<f32>;
@group(0) @binding(4) var<storage, read> dscaled: array<f32>;
@group(0) @binding(5) var<storage, read_write> sums: array<f32>; // [T, 2H]
@group(0) @binding(6) var<storage, read> size: vec4<u32>;

fn run(i: u32) {
  let t = i / H;
  let head = i % H;
  var own = 0.0;
  var reached = 0.0;
  for (var p = 0u; p < P; p++) {
    let index = head * P + p;
    own += dscaled[t * INNER + index] * mixed[t * M + index];
    reached += slope[t * INNER + index] * out[t * INNER + index];
  }
  sums[t * 2u * H + head] = own;
  sums[(t * 2u + 1u) * H + head] = reached - steps[t * 2u * H + head] * own;
}
#endif
#if PART == step
@group(0) @binding(0) var<storage, read> sums: array<f32>;
@group(0) @binding(1) var<storage, read> projection: array<f32>;
@group(0) @binding(2) var<storage, read> constants: array<f32>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read_write> dstep: array<f32>; // [T, H]
@group(0) @binding(5) var<storage, read> size: vec4<u32>;

// One invocation per head, looping over the tokens in reverse.
fn run(head: u32) {
  var later = 0.0;
  for (var t = size.z; t > 0u; t--) {
    let at = t - 1u;
    later += sums[(at * 2u + 1u) * H + head];
    let slope = logistic(projection[at * W + ${STEPS}u + head] + constants[2u * H + head]);
    dstep[at * H + head] = (sums[at * 2u * H + head] + constants[head] * later) * slope;
    if (positions[at] == 0u) { later = 0.0; }
  }
}
#endif
#if PART == inputs
@group(0) @binding(0) var<storage, read> constants: array<f32>;
@group(0) @binding(1) var<storage, read> steps: array<f32>;
@group(0) @binding(2) var<storage, read> slope: array<f32>;
@group(0) @binding(3) var<storage, read> dscaled: array<f32>;
@group(0) @binding(4) var<storage, read_write> dmixed: array<f32>;
@group(0) @binding(5) var<storage, read> size: vec4<u32>;

fn run(i: u32) {
  let t = i / INNER;
  let index = i % INNER;
  let gradient = steps[t * 2u * H + index / P] * dscaled[i] + constants[H + index / P] * slope[i];
#if ADD
  dmixed[t * M + index] += gradient;
#else
  dmixed[t * M + index] = gradient;
#endif
}
#endif
#if PART == gates
@group(0) @binding(0) var<storage, read> mixed: array<f32>;
@group(0) @binding(1) var<storage, read> projection: array<f32>;
@group(0) @binding(2) var<storage, read> constants: array<f32>;
@group(0) @binding(3) var<storage, read> out: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read> dstep: array<f32>;
@group(0) @binding(6) var<storage, read_write> dprojection: array<f32>;
@group(0) @binding(7) var<storage, read> size: vec4<u32>;

fn run(i: u32) {
  let t = i / W;
  let column = i % W;
  var gradient = 0.0;
  if (column < INNER) {
    let z = projection[i];
    let s = logistic(z);
    let sum = out[t * INNER + column] + constants[H + column / P] * mixed[t * M + column];
    gradient = dy[t * INNER + column] * sum * s * (1.0 + z * (1.0 - s)) * ${OUTPUT_SCALE};
  }
  if (column >= ${STEPS}u && column < ${STEPS}u + H) { gradient += dstep[t * H + column - ${STEPS}u]; }
#if ADD
  dprojection[i] += gradient;
#else
  dprojection[i] = gradient;
#endif
}
#endif

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i < size.x) { run(i); }
}
