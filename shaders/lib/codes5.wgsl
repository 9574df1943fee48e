// Codes of 5 bits: byte j of a block's 16 bytes holds the low 4 bits of q[j] and q[j + 16]; the high bit of
// q[16 h + 4 i + b] is bit 8 b + 4 h + i of the word in `highs`.
@group(1) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(1) @binding(1) var<storage, read> highs: array<u32>;

fn five4(low: u32, high: u32) -> vec4<f32> {
  return bytes4((low & 0x0f0f0f0fu) | ((high & 0x01010101u) << 4u));
}

fn codes32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let at = slot(row, block, 1u, 0u);
  let w = codes[at];
  let h = highs[at];
  return array<vec4<f32>, 8>(
    five4(w.x, h), five4(w.y, h >> 1u), five4(w.z, h >> 2u), five4(w.w, h >> 3u),
    five4(w.x >> 4u, h >> 4u), five4(w.y >> 4u, h >> 5u), five4(w.z >> 4u, h >> 6u), five4(w.w >> 4u, h >> 7u));
}

fn packed32(row: u32, block: u32) -> array<vec4<u32>, 2> {
  let at = slot(row, block, 1u, 0u);
  let w = codes[at];
  let shifts = vec4<u32>(0u, 1u, 2u, 3u);
  let h = vec4<u32>(highs[at]);
  let low = ((h >> shifts) & vec4<u32>(0x01010101u)) << vec4<u32>(4u);
  let high = ((h >> (shifts + vec4<u32>(4u))) & vec4<u32>(0x01010101u)) << vec4<u32>(4u);
  return array<vec4<u32>, 2>(
    (w & vec4<u32>(0x0f0f0f0fu)) | low, ((w >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu)) | high);
}

#if MATRICES
// The weights of a block with one pair: scale and minimum.
fn weights_of(w: vec4<u32>, h: u32, f: vec2<f32>) -> array<vec4<f32>, 8> {
  let v = w >> vec4<u32>(4u);
  return array<vec4<f32>, 8>(
    five4(w.x, h) * f.x - f.y, five4(w.y, h >> 1u) * f.x - f.y,
    five4(w.z, h >> 2u) * f.x - f.y, five4(w.w, h >> 3u) * f.x - f.y,
    five4(v.x, h >> 4u) * f.x - f.y, five4(v.y, h >> 5u) * f.x - f.y,
    five4(v.z, h >> 6u) * f.x - f.y, five4(v.w, h >> 7u) * f.x - f.y);
}
#endif
