// q4_0: byte j holds q[j] and q[j + 16]; an f16 scale per block of 32: w = d q - 8 d.
@group(1) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(1) @binding(1) var<storage, read> scales: array<u32>;

fn low4(w: u32) -> vec4<f32> { return bytes4(w & 0x0f0f0f0fu); }
fn high4(w: u32) -> vec4<f32> { return bytes4((w >> 4u) & 0x0f0f0f0fu); }

fn codes32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let w = codes[slot(row, block, 1u, 0u)];
  return array<vec4<f32>, 8>(
    low4(w.x), low4(w.y), low4(w.z), low4(w.w), high4(w.x), high4(w.y), high4(w.z), high4(w.w));
}

fn scales32(row: u32, block: u32) -> vec4<f32> {
  let at = slot(row, block, 1u, 0u);
  let d = unpack2x16float(scales[at >> 1u] >> ((at & 1u) * 16u)).x;
  return vec4<f32>(d, 8.0 * d, d, 8.0 * d);
}

fn packed32(row: u32, block: u32) -> array<vec4<u32>, 2> {
  let w = codes[slot(row, block, 1u, 0u)];
  return array<vec4<u32>, 2>(w & vec4<u32>(0x0f0f0f0fu), (w >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu));
}

#if MATRICES
struct Stored { codes: vec4<u32>, scales: u32, shift: u32 }

fn stored32(row: u32, block: u32) -> Stored {
  let at = slot(row, block, 1u, 0u);
  return Stored(codes[at], scales[at >> 1u], (at & 1u) * 16u);
}

fn unpack32(s: Stored) -> array<vec4<f32>, 8> {
  let d = unpack2x16float(s.scales >> s.shift).x;
  let m = 8.0 * d;
  let w = s.codes;
  return array<vec4<f32>, 8>(
    low4(w.x) * d - m, low4(w.y) * d - m, low4(w.z) * d - m, low4(w.w) * d - m,
    high4(w.x) * d - m, high4(w.y) * d - m, high4(w.z) * d - m, high4(w.w) * d - m);
}
#endif
