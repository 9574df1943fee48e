// q4_1: codes of 4 bits (lib/codes4); a pair of f16 (d, m) per block of 32: w = d q - m.
@group(1) @binding(1) var<storage, read> scales: array<u32>;

fn scales32(row: u32, block: u32) -> vec4<f32> {
  let s = unpack2x16float(scales[slot(row, block, 1u, 0u)]);
  return vec4<f32>(s, s);
}

#if MATRICES
struct Stored { codes: vec4<u32>, scales: u32 }

fn stored32(row: u32, block: u32) -> Stored {
  let at = slot(row, block, 1u, 0u);
  return Stored(codes[at], scales[at]);
}

fn unpack32(s: Stored) -> array<vec4<f32>, 8> { return weights_of(s.codes, unpack2x16float(s.scales)); }
#endif
