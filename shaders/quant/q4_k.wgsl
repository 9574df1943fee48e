// q4_k: byte j holds q[j] and q[j + 16]; (d, m) per block of 32 from lib/shared_scales: w = d q - m.
@group(1) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(1) @binding(1) var<storage, read> scales: array<vec4<u32>>;

fn low4(w: u32) -> vec4<f32> { return bytes4(w & 0x0f0f0f0fu); }
fn high4(w: u32) -> vec4<f32> { return bytes4((w >> 4u) & 0x0f0f0f0fu); }

fn codes32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let w = codes[slot(row, block, 1u, 0u)];
  return array<vec4<f32>, 8>(
    low4(w.x), low4(w.y), low4(w.z), low4(w.w), high4(w.x), high4(w.y), high4(w.z), high4(w.w));
}

fn scales32(row: u32, block: u32) -> vec4<f32> {
  let shared_scales = scales[slot_of_eight(row, block)];
  return pair_of_eight(shared_scales, unpack2x16float(shared_scales.x), block);
}

fn packed32(row: u32, block: u32) -> array<vec4<u32>, 2> {
  let w = codes[slot(row, block, 1u, 0u)];
  return array<vec4<u32>, 2>(w & vec4<u32>(0x0f0f0f0fu), (w >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu));
}

#if MATRICES
struct Stored { codes: vec4<u32>, scales: vec4<u32>, block: u32 }

fn stored32(row: u32, block: u32) -> Stored {
  let at = slot(row, block, 1u, 0u);
  return Stored(codes[at], scales[slot_of_eight(row, block)], block);
}

fn unpack32(s: Stored) -> array<vec4<f32>, 8> {
  let f = pair_of_eight(s.scales, unpack2x16float(s.scales.x), s.block);
  let w = s.codes;
  return array<vec4<f32>, 8>(
    low4(w.x) * f.x - f.y, low4(w.y) * f.x - f.y, low4(w.z) * f.x - f.y, low4(w.w) * f.x - f.y,
    high4(w.x) * f.x - f.y, high4(w.y) * f.x - f.y, high4(w.z) * f.x - f.y, high4(w.w) * f.x - f.y);
}
#endif
