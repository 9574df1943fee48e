// Shared by those passes of attention_backward in which a subgroup broadcasts the rows that it reads, as
// attention_lanes does: for devices on which barriers are expensive. Bindings are those of
// lib/attention_backward.wgsl; a tile of TQ tokens has TQ / LANES workgroups of one subgroup.
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // [T, H, d]
@group(0) @binding(1) var<storage, read> k_cache: array<vec4<f32>>; // [rows, K, d]
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>; // [T, H, d]
#if STATISTICS
@group(0) @binding(3) var<storage, read> y: array<vec4<f32>>;
#else
@group(0) @binding(3) var<storage, read> v_cache: array<vec4<f32>>;
#endif
@group(0) @binding(4) var<storage, read> tiles: array<vec2<u32>>; // (first token, tokens), each of one sequence

const H = ${H}u;
const K = ${K}u;
const D4 = ${d}u / 4u;
const LANES = ${LANES}u;
const PARTS = ${TQ}u / LANES;
const WINDOW = ${WINDOW}u; // 0: none

// The derivative of score() with respect to raw, given the score.
fn score_slope(value: f32) -> f32 {
#if SOFTCAP
  let t = value / ${CAP};
  return ${SCALE} * (1.0 - t * t);
#else
  return ${SCALE};
#endif
}

fn visible(query: u32, key: u32) -> bool { return key <= query && (WINDOW == 0u || key + WINDOW > query); }
