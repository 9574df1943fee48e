// Codes of 4 bits: byte j of a block's 16 bytes holds q[j] and q[j + 16].
@group(1) @binding(0) var<storage, read> codes: array<vec4<u32>>;

fn low4(w: u32) -> vec4<f32> { return bytes4(w & 0x0f0f0f0fu); }
fn high4(w: u32) -> vec4<f32> { return bytes4((w >> 4u) & 0x0f0f0f0fu); }

fn codes32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let w = codes[slot(row, block, 1u, 0u)];
  return array<vec4<f32>, 8>(
    low4(w.x), low4(w.y), low4(w.z), low4(w.w), high4(w.x), high4(w.y), high4(w.z), high4(w.w));
}

fn packed32(row: u32, block: u32) -> array<vec4<u32>, 2> {
  let w = codes[slot(row, block, 1u, 0u)];
  return array<vec4<u32>, 2>(w & vec4<u32>(0x0f0f0f0fu), (w >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu));
}

#if MATRICES
// The weights of a block with one pair: scale and minimum.
fn weights_of(w: vec4<u32>, f: vec2<f32>) -> array<vec4<f32>, 8> {
  return array<vec4<f32>, 8>(
    low4(w.x) * f.x - f.y, low4(w.y) * f.x - f.y, low4(w.z) * f.x - f.y, low4(w.w) * f.x - f.y,
    high4(w.x) * f.x - f.y, high4(w.y) * f.x - f.y, high4(w.z) * f.x - f.y, high4(w.w) * f.x - f.y);
}
#endif
