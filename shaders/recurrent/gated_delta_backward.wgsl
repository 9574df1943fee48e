// Those parts of the gradient of recurrent/gated_delta.wgsl that are no matrix products, one PART per kernel;
// ops/recurrent/gated_delta_backward.rs explains them. T tokens, H heads with values of DV, K key heads with keys of
// DK. steps [T, 3H]: β, the logarithm of the decay, and its sum over the sequence's tokens up to this one. unit
// [T, 2 K DK]: normalised q and k. Sequences begin at position 0.
const H = ${H}u;
const DV = ${DV}u;
const K = ${K}u;
const DK = ${DK}u;
const INNER = H * DV;
const KEYS = K * DK;
const M = 2u * KEYS + INNER;

struct Size { count: u32, threads_x: u32, tokens: u32, unused: u32, start: u32, end: u32 }

fn logistic(v: f32) -> f32 { return 1.0 / (1.0 + exp(clamp(-v, -80.0, 80.0))); }

#if PART == steps
@group(0) @binding(0) var<storage, read> gates: array<f32>;
@group(0) @binding(1) var<storage, read> constants: array<f32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read_write> steps: array<f32>;
@group(0) @binding(4) var<storage, read> size: Size;

// One invocation per head, looping over the tokens.
fn run(head: u32) {
  var sum = 0.0;
  for (var t = 0u; t < size.tokens; t++) {
    let raw = gates[t * 2u * H + H + head] + constants[H + head];
    let decay = (max(raw, 0.0) + log(1.0 + exp(-abs(raw)))) * constants[head];
    sum = select(sum, 0.0, positions[t] == 0u) + decay;
    steps[t * 3u * H + head] = logistic(gates[t * 2u * H + head]);
    steps[t * 3u * H + H + head] = decay;
    steps[t * 3u * H + 2u * H + head] = sum;
  }
}
#endif
#if PART == unit
@group(0) @binding(0) var<storage, read> mixed: array<f32>;
@group(0) @binding(1) var<storage, read_write> unit: array<f32>;
@group(0) @binding(2) var<storage, read> size: Size;

// One invocation per token and head of q or k.
fn run(index: u32) {
  let t = index / (2u * K);
  let head = index % (2u * K);
  let start = t * M + head * DK;
  var square = 0.0;
  for (var i = 0u; i < DK; i++) { square += mixed[start + i] * mixed[start + i]; }
  let scale = inverseSqrt(square + ${DELTA_EPS}) * select(1.0, ${QUERY_SCALE}, head < K);
  for (var i = 0u; i < DK; i++) { unit[t * 2u * KEYS + head * DK + i] = mixed[start + i] * scale; }
}
#endif
#if PART == replay
@group(0) @binding(0) var<storage, read> mixed: array<f32>;
@group(0) @binding(1) var<storage, read> unit: array<f32>;
@group(0) @binding(2) var<storage, read> steps: array<f32>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read_write> errors: array<f32>;
@group(0) @binding(5) var<storage, read_write> changes: array<f32>;
@group(0) @binding(6) var<storage, read_write> state: array<f32>; // [H, DK, DV]
@group(0) @binding(7) var<storage, read> size: Size;

// One invocation per column of the state, looping over the tokens.
fn run(index: u32) {
  let head = index / DV;
  let place = head * DK * DV + index % DV;
  for (var t = size.start; t < size.end; t++) {
    let begun = positions[t] > 0u;
    let from_k = t * 2u * KEYS + KEYS + (${KEY_OF_HEAD}) * DK;
    let decay = exp(max(steps[t * 3u * H + H + head], -80.0));
    var memory = 0.0;
    var at = place;
    for (var i = 0u; i < DK; i++) {
      memory += select(0.0, state[at], begun) * unit[from_k + i];
      at += DV;
    }
    let error = mixed[t * M + 2u * KEYS + index] - decay * memory;
    let change = steps[t * 3u * H + head] * error;
    at = place;
    for (var i = 0u; i < DK; i++) {
      state[at] = select(0.0, state[at], begun) * decay + unit[from_k + i] * change;
      at += DV;
    }
    errors[t * INNER + index] = error;
    changes[t * INNER + index] = change;
  }
}
#endif
#if PART == adjoint
@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(1) var<storage, read> unit: array<f32>;
@group(0) @binding(2) var<storage, read> steps: array<f32>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read_write> adjoint: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<f32>; // the gradient of the state [H, DK, DV]
@group(0) @binding(6) var<storage, read> size: Size;

// One invocation per column of the state, looping over the tokens in reverse.
fn run(index: u32) {
  let head = index / DV;
  let place = head * DK * DV + index % DV;
  for (var next = size.end; next > size.start; next--) {
    let t = next - 1u;
    var later = false;
    if (next < size.tokens) { later = positions[next] > 0u; }
    let from_q = t * 2u * KEYS + (${KEY_OF_HEAD}) * DK;
    let from_k = from_q + KEYS;
    let slope = dy[t * INNER + index];
    var sum = 0.0;
    var at = place;
    for (var i = 0u; i < DK; i++) {
      sum += (select(0.0, state[at], later) + unit[from_q + i] * slope) * unit[from_k + i];
      at += DV;
    }
    adjoint[t * INNER + index] = sum;
    let decay = exp(max(steps[t * 3u * H + H + head], -80.0));
    let back = steps[t * 3u * H + head] * sum;
    at = place;
    for (var i = 0u; i < DK; i++) {
      let own = select(0.0, state[at], later) + unit[from_q + i] * slope;
      state[at] = decay * (own - back * unit[from_k + i]);
      at += DV;
    }
  }
}
#endif
#if PART == decay
@group(0) @binding(0) var<storage, read> slopes: array<f32>; // dy[t] · U[s] [T, T]
@group(0) @binding(1) var<storage, read> pulls: array<f32>; // Y[t] · U[s] [T, T]
@group(0) @binding(2) var<storage, read> steps: array<f32>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read_write> by_query: array<f32>;
@group(0) @binding(5) var<storage, read_write> by_key: array<f32>;
@group(0) @binding(6) var<storage, read> size: Size;

fn run(i: u32) {
  let t = i / size.tokens;
  let s = i % size.tokens;
  var decay = 0.0;
  if (s <= t) {
    if (positions[t] >= t - s) {
      let sums = 2u * H + ${HEAD}u;
      decay = exp(clamp(steps[t * 3u * H + sums] - steps[s * 3u * H + sums], -80.0, 0.0));
    }
  }
  by_query[i] = decay * slopes[i];
  by_key[i] = select(0.0, -steps[t * 3u * H + ${HEAD}u], s < t) * decay * pulls[i];
}
#endif
#if PART == mixed
@group(0) @binding(0) var<storage, read> mixed: array<f32>;
@group(0) @binding(1) var<storage, read> dunit: array<f32>;
@group(0) @binding(2) var<storage, read> adjoint: array<f32>;
@group(0) @binding(3) var<storage, read> steps: array<f32>;
@group(0) @binding(4) var<storage, read_write> dmixed: array<f32>;
@group(0) @binding(5) var<storage, read> size: Size;

fn run(i: u32) {
  let t = i / M;
  let column = i % M;
  var gradient = 0.0;
  if (column < 2u * KEYS) {
    let first = column / DK * DK;
    var square = 0.0;
    var along = 0.0;
    for (var j = 0u; j < DK; j++) {
      let x = mixed[t * M + first + j];
      square += x * x;
      along += x * dunit[t * 2u * KEYS + first + j];
    }
    let length = inverseSqrt(square + ${DELTA_EPS});
    gradient = length * dunit[t * 2u * KEYS + column] - mixed[i] * along * length * length * length;
    gradient *= select(1.0, ${QUERY_SCALE}, column < KEYS);
  } else {
    let index = column - 2u * KEYS;
    gradient = steps[t * 3u * H + index / DV] * adjoint[t * INNER + index];
  }
#if ADD
  dmixed[i] += gradient;
#else
  dmixed[i] = gradient;
#endif
}
#endif
#if PART == sums
@group(0) @binding(0) var<storage, read> mixed: array<f32>;
@group(0) @binding(1) var<storage, read> errors: array<f32>;
@group(0) @binding(2) var<storage, read> adjoint: array<f32>;
@group(0) @binding(3) var<storage, read> y: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read> steps: array<f32>;
@group(0) @binding(6) var<storage, read_write> sums: array<f32>; // [T, 2H]
@group(0) @binding(7) var<storage, read> size: Size;

fn run(i: u32) {
  let t = i / H;
  let head = i % H;
  var corrected = 0.0;
  var reached = 0.0;
  var written = 0.0;
  for (var j = 0u; j < DV; j++) {
    let index = head * DV + j;
    let own = adjoint[t * INNER + index];
    corrected += own * errors[t * INNER + index];
    reached += dy[t * INNER + index] * y[t * INNER + index];
    written += own * mixed[t * M + 2u * KEYS + index];
  }
  sums[t * 2u * H + head] = corrected;
  sums[t * 2u * H + H + head] = reached - steps[t * 3u * H + head] * written;
}
#endif
#if PART == gates
@group(0) @binding(0) var<storage, read> sums: array<f32>;
@group(0) @binding(1) var<storage, read> gates: array<f32>;
@group(0) @binding(2) var<storage, read> constants: array<f32>;
@group(0) @binding(3) var<storage, read> steps: array<f32>;
@group(0) @binding(4) var<storage, read> positions: array<u32>;
@group(0) @binding(5) var<storage, read_write> dgates: array<f32>;
@group(0) @binding(6) var<storage, read> size: Size;

fn write(i: u32, gradient: f32) {
#if ADD
  dgates[i] += gradient;
#else
  dgates[i] = gradient;
#endif
}

// One invocation per head, looping over the tokens in reverse.
fn run(head: u32) {
  var later = 0.0;
  for (var next = size.tokens; next > 0u; next--) {
    let t = next - 1u;
    later += sums[t * 2u * H + H + head];
    let beta = steps[t * 3u * H + head];
    let raw = gates[t * 2u * H + H + head] + constants[H + head];
    write(t * 2u * H + head, sums[t * 2u * H + head] * beta * (1.0 - beta));
    write(t * 2u * H + H + head, later * constants[head] * logistic(raw));
    if (positions[t] == 0u) { later = 0.0; }
  }
}
#endif

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.threads_x + id.x;
  if (i < size.count) { run(i); }
}
