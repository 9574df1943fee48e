// q5_k: codes of 5 bits (lib/codes5); (d, m) per block of 32 from lib/shared_scales: w = d q - m.
@group(1) @binding(2) var<storage, read> scales: array<vec4<u32>>;

struct Eight { words: vec4<u32>, units: vec2<f32> }

fn eight(row: u32, block: u32) -> Eight {
  let words = scales[slot_of_eight(row, block)];
  return Eight(words, unpack2x16float(words.x));
}

fn scales_in(e: Eight, block: u32) -> vec4<f32> { return pair_of_eight(e.words, e.units, block); }

fn scales32(row: u32, block: u32) -> vec4<f32> { return scales_in(eight(row, block), block); }

#if MATRICES
struct Stored { codes: vec4<u32>, highs: u32, scales: vec4<u32>, block: u32 }

fn stored32(row: u32, block: u32) -> Stored {
  let at = slot(row, block, 1u, 0u);
  return Stored(codes[at], highs[at], scales[slot_of_eight(row, block)], block);
}

fn unpack32(s: Stored) -> array<vec4<f32>, 8> {
  return weights_of(s.codes, s.highs, pair_of_eight(s.scales, unpack2x16float(s.scales.x), s.block).xy);
}
#endif
