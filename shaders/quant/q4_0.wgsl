// q4_0: codes of 4 bits (lib/codes4); an f16 scale per block of 32: w = d q - 8 d.
@group(1) @binding(1) var<storage, read> scales: array<u32>;

fn scales32(row: u32, block: u32) -> vec4<f32> {
  let at = slot(row, block, 1u, 0u);
  let d = unpack2x16float(scales[at >> 1u] >> ((at & 1u) * 16u)).x;
  return vec4<f32>(d, 8.0 * d, d, 8.0 * d);
}

#if MATRICES
struct Stored { codes: vec4<u32>, scales: u32, shift: u32 }

fn stored32(row: u32, block: u32) -> Stored {
  let at = slot(row, block, 1u, 0u);
  return Stored(codes[at], scales[at >> 1u], (at & 1u) * 16u);
}

fn unpack32(s: Stored) -> array<vec4<f32>, 8> {
  let d = unpack2x16float(s.scales >> s.shift).x;
  return weights_of(s.codes, vec2<f32>(d, 8.0 * d));
}
#endif
