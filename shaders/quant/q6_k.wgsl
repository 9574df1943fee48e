// q6_k: byte j of the codes holds the low 4 bits of q[j] and q[j + 16]; the high 2 bits of q[16 h + 4 i + b] are in
// word h from bit 8 b + 2 i on. For 8 blocks of a row, scales are multiples of an f16 unit, two for each block:
// w = d q - 32 d. Units and multiples of 32 rows are stored apart: 16 words with the units of two rows each, then four
// times 32 words, of which word i has a row's multiples for blocks 2 i and 2 i + 1, each plus 128.
@group(1) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(1) @binding(1) var<storage, read> highs: array<vec2<u32>>;
@group(1) @binding(2) var<storage, read> scales: array<u32>;

fn six4(low: u32, high: u32) -> vec4<f32> {
  return bytes4((low & 0x0f0f0f0fu) | ((high & 0x03030303u) << 4u));
}

fn codes32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let at = slot(row, block, 1u, 0u);
  let w = codes[at];
  let h = highs[at];
  return array<vec4<f32>, 8>(
    six4(w.x, h.x), six4(w.y, h.x >> 2u), six4(w.z, h.x >> 4u), six4(w.w, h.x >> 6u),
    six4(w.x >> 4u, h.y), six4(w.y >> 4u, h.y >> 2u), six4(w.z >> 4u, h.y >> 4u), six4(w.w >> 4u, h.y >> 6u));
}

// The first word of 8 blocks of 32 rows.
fn eights_at(row: u32, block: u32) -> u32 {
  return ((row & 0xffffffe0u) >> 1u) * 9u * EIGHTS + (block & 0xfffffff8u) * 18u;
}

fn unit_at(row: u32, at: u32) -> f32 {
  return unpack2x16float(scales[at + ((row & 31u) >> 1u)] >> ((row & 1u) * 16u)).x;
}

// The scales of a block's halves, from the word with its multiples.
fn pair_of(word: u32, unit: f32, block: u32) -> vec2<f32> {
  let steps = word >> ((block & 1u) * 16u);
  return unit * (vec2<f32>(vec2<i32>(vec2<u32>(steps, steps >> 8u) & vec2<u32>(0xffu))) - 128.0);
}

struct Eight { words: vec4<u32>, unit: f32 }

fn eight(row: u32, block: u32) -> Eight {
  let at = eights_at(row, block);
  let first = at + 16u + (row & 31u);
  let words = vec4<u32>(scales[first], scales[first + 32u], scales[first + 64u], scales[first + 96u]);
  return Eight(words, unit_at(row, at));
}

fn scales_in(e: Eight, block: u32) -> vec4<f32> {
  let words = select(e.words.xy, e.words.zw, (block & 4u) != 0u);
  let d = pair_of(select(words.x, words.y, (block & 2u) != 0u), e.unit, block);
  return vec4<f32>(d.x, 32.0 * d.x, d.y, 32.0 * d.y);
}

fn scales32(row: u32, block: u32) -> vec4<f32> {
  let at = eights_at(row, block);
  let d = pair_of(scales[at + 16u + (block & 6u) * 16u + (row & 31u)], unit_at(row, at), block);
  return vec4<f32>(d.x, 32.0 * d.x, d.y, 32.0 * d.y);
}

fn packed32(row: u32, block: u32) -> array<vec4<u32>, 2> {
  let at = slot(row, block, 1u, 0u);
  let w = codes[at];
  let h = highs[at];
  let shifts = vec4<u32>(0u, 2u, 4u, 6u);
  let low = ((vec4<u32>(h.x) >> shifts) & vec4<u32>(0x03030303u)) << vec4<u32>(4u);
  let high = ((vec4<u32>(h.y) >> shifts) & vec4<u32>(0x03030303u)) << vec4<u32>(4u);
  return array<vec4<u32>, 2>(
    (w & vec4<u32>(0x0f0f0f0fu)) | low, ((w >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu)) | high);
}

#if MATRICES
struct Stored { codes: vec4<u32>, highs: vec2<u32>, steps: u32, units: u32, row: u32, block: u32 }

fn stored32(row: u32, block: u32) -> Stored {
  let at = slot(row, block, 1u, 0u);
  let first = eights_at(row, block);
  let steps = scales[first + 16u + (block & 6u) * 16u + (row & 31u)];
  return Stored(codes[at], highs[at], steps, scales[first + ((row & 31u) >> 1u)], row, block);
}

fn unpack32(s: Stored) -> array<vec4<f32>, 8> {
  let f = pair_of(s.steps, unpack2x16float(s.units >> ((s.row & 1u) * 16u)).x, s.block);
  let m = 32.0 * f;
  let w = s.codes;
  let v = w >> vec4<u32>(4u);
  let h = s.highs;
  return array<vec4<f32>, 8>(
    six4(w.x, h.x) * f.x - m.x, six4(w.y, h.x >> 2u) * f.x - m.x,
    six4(w.z, h.x >> 4u) * f.x - m.x, six4(w.w, h.x >> 6u) * f.x - m.x,
    six4(v.x, h.y) * f.y - m.y, six4(v.y, h.y >> 2u) * f.y - m.y,
    six4(v.z, h.y >> 4u) * f.y - m.y, six4(v.w, h.y >> 6u) * f.y - m.y);
}
#endif
