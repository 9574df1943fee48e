// q6_k: byte j of the codes holds the low 4 bits of q[j] and q[j + 16]; the high 2 bits of q[16 h + 4 i + b] are in
// word h from bit 8 b + 2 i on; two f16 scales per block, one for each half: w = d q - 32 d.
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

fn scales32(row: u32, block: u32) -> vec4<f32> {
  let s = unpack2x16float(scales[slot(row, block, 1u, 0u)]);
  return vec4<f32>(s.x, 32.0 * s.x, s.y, 32.0 * s.y);
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
struct Stored { codes: vec4<u32>, highs: vec2<u32>, scales: u32 }

fn stored32(row: u32, block: u32) -> Stored {
  let at = slot(row, block, 1u, 0u);
  return Stored(codes[at], highs[at], scales[at]);
}

fn unpack32(s: Stored) -> array<vec4<f32>, 8> {
  let f = unpack2x16float(s.scales);
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
