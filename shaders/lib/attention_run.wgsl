// One run of SPLIT cached positions, shared by attention_decode and attention_split. All G query heads of a key-value
// head are processed together, so that keys and values are read once. The including kernel declares k_cache, v_cache
// and partial, and query4, which reads its queries. partial [T, splits, H, d + 2]: the weighted values, then the
// maximum score and the sum of weights. `attend` is in attention_run_each or attention_run_shared.
const H = ${H}u;
const K = ${K}u;
const G = ${H}u / ${K}u;
const D4 = ${d}u / 4u;
const SPLIT = ${SPLIT}u;
const WINDOW = ${WINDOW}u; // 0: none
const MAX_SPLITS = ${MAX_SPLITS}u;

// The cache row of position start + i of a run whose first position is `start`, in row `first`.
#if CONSECUTIVE
fn run_row(first: u32, base: u32, start: u32, i: u32) -> u32 { return first + i; }
#else
fn run_row(first: u32, base: u32, start: u32, i: u32) -> u32 { return cache_row(base, start + i); }
#endif

// The positions of a run that the token at `position` sees: from x up to, but without, y.
fn visible(split: u32, position: u32) -> vec2<u32> {
  var begin = split * SPLIT;
  if (WINDOW > 0u && position + 1u > WINDOW) { begin = max(begin, position + 1u - WINDOW); }
  return vec2<u32>(begin, min((split + 1u) * SPLIT, position + 1u));
}

// Offset of a head's partial result of a run; the maximum and the sum follow D4 * 4 values later.
fn part_of(token: u32, split: u32, head: u32) -> u32 {
  return ((token * MAX_SPLITS + split) * H + head) * (D4 * 4u + 2u);
}

fn write_weight(token: u32, split: u32, head: u32, peak: f32, sum: f32) {
  let to = part_of(token, split, head) + D4 * 4u;
  partial[to] = peak;
  partial[to + 1u] = sum;
}

// Writes an empty result, which the merge ignores, for a run in which nothing is visible.
fn write_empty(token: u32, split: u32, kv: u32, lane: u32) {
  for (var g = lane; g < G; g += ${THREADS}u) { write_weight(token, split, kv * G + g, -1e30, 0.0); }
}
