// Second pass: samples a token for each row and feeds it back. One workgroup per row. Order as in llama.cpp: penalties
// (applied by the first pass), top-k, top-p, min-p, temperature. Adding Gumbel noise to the logits and taking the
// maximum draws exactly from the softmax of the remaining tokens. settings [R, 16]: 0 temperature (0: the most likely
// token), 1 top_k (0: off), 2 top_p, 3 min_p, 4 repeat, 5 presence, 6 frequency, 7 adjust, 8 and 9 the seed's bits.
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> settings: array<f32>;
@group(0) @binding(2) var<storage, read> peaks: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> counts: array<u32>;
@group(0) @binding(4) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(5) var<storage, read_write> positions: array<u32>;

const V = ${V}u;
const CHUNK = ${CHUNK}u;
const CHUNKS = ${CHUNKS}u;
const THREADS = ${THREADS}u;

var<workgroup> shared_value: array<f32, THREADS>;
var<workgroup> shared_id: array<u32, THREADS>;
var<workgroup> shared_result: vec2<u32>;

// Maps floats to unsigned integers in the same order.
fn key_of(value: f32) -> u32 {
  let bits = bitcast<u32>(value);
  return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

// PCG hash (Jarzynski and Olano, 2020).
fn hash(value: u32) -> u32 {
  let state = value * 747796405u + 2891336453u;
  let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
  return (word >> 22u) ^ word;
}

fn gumbel(seed: u32, id: u32) -> f32 {
  // Below 1 also where the sum is rounded to 16777216: the noise would be infinite, and any token would win.
  let uniform01 = min((f32(hash(hash(id) ^ seed) >> 8u) + 0.5) / 16777216.0, 0.99999994);
  return -log(-log(uniform01));
}

// Sums over a row's logits with a key of at least `least`: their number, or with `mass` their total exp(logit - peak).
fn above(row: u32, lane: u32, least: u32, peak: f32, mass: bool) -> f32 {
  var sum = 0.0;
  for (var chunk = 0u; chunk < CHUNKS; chunk++) {
    if (key_of(bitcast<f32>(peaks[row * CHUNKS + chunk].x)) < least) { continue; }
    let end = min((chunk + 1u) * CHUNK, V);
    for (var i = chunk * CHUNK + lane; i < end; i += THREADS) {
      let l = logits[row * V + i];
      if (key_of(l) >= least) { sum += select(1.0, exp(max(l - peak, -80.0)), mass); }
    }
  }
  shared_value[lane] = sum;
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    if (lane < half) { shared_value[lane] += shared_value[lane + half]; }
    workgroupBarrier();
  }
  if (lane == 0u) { shared_result.x = bitcast<u32>(shared_value[0]); }
  let total = workgroupUniformLoad(&shared_result);
  return bitcast<f32>(total.x);
}

// The largest key such that the logits with at least this key number (or have a mass of) at least `wanted`.
fn threshold(row: u32, lane: u32, floor: u32, peak: f32, wanted: f32, mass: bool) -> u32 {
  var low = floor;
  var high = key_of(peak);
  while (low < high) {
    let middle = high - (high - low) / 2u;
    if (above(row, lane, middle, peak, mass) >= wanted) { low = middle; } else { high = middle - 1u; }
  }
  return low;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.x;
  if (lane == 0u) {
    var value = -3.4e38;
    var id = 0u;
    for (var chunk = 0u; chunk < CHUNKS; chunk++) {
      let found = peaks[row * CHUNKS + chunk];
      if (bitcast<f32>(found.x) > value) { value = bitcast<f32>(found.x); id = found.y; }
    }
    shared_result = vec2<u32>(bitcast<u32>(value), id);
  }
  let best = workgroupUniformLoad(&shared_result);
  var token = best.y;
  let temperature = settings[row * 16u];
  if (temperature > 0.0) {
    let peak = bitcast<f32>(best.x);
    var least = 0u;
    let top_k = settings[row * 16u + 1u];
    if (top_k > 0.0) { least = threshold(row, lane, least, peak, top_k, false); }
    let top_p = settings[row * 16u + 2u];
    if (top_p < 1.0) { least = threshold(row, lane, least, peak, top_p * above(row, lane, least, peak, true), true); }
    let min_p = settings[row * 16u + 3u];
    if (min_p > 0.0) { least = max(least, key_of(peak + log(min_p))); }
    let of_position = hash(bitcast<u32>(settings[row * 16u + 9u]) ^ hash(positions[row]));
    let seed = hash(bitcast<u32>(settings[row * 16u + 8u]) ^ of_position);
    var value = -3.4e38;
    var id = token;
    for (var chunk = 0u; chunk < CHUNKS; chunk++) {
      if (key_of(bitcast<f32>(peaks[row * CHUNKS + chunk].x)) < least) { continue; }
      let end = min((chunk + 1u) * CHUNK, V);
      for (var i = chunk * CHUNK + lane; i < end; i += THREADS) {
        let l = logits[row * V + i];
        if (key_of(l) >= least) {
          let noisy = (l - peak) / temperature + gumbel(seed, i);
          if (noisy > value) { value = noisy; id = i; }
        }
      }
    }
    shared_value[lane] = value;
    shared_id[lane] = id;
    workgroupBarrier();
    if (lane == 0u) {
      for (var t = 1u; t < THREADS; t++) {
        if (shared_value[t] > value || (shared_value[t] == value && shared_id[t] < id)) {
          value = shared_value[t];
          id = shared_id[t];
        }
      }
      token = id;
    }
  }
  if (lane == 0u) {
    tokens[row] = token;
    counts[row * V + token] += 1u;
    positions[row] += 1u;
  }
}
