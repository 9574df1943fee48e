// q6_k: byte j of the codes holds the low 4 bits of q[j] and q[j + 16]; the high 2 bits of q[16 h + 4 i + b] stand in word h at
// bit 8 b + 2 i; two f16 scales a block, one for each half: w = d (q - 32).
@group(1) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(1) @binding(1) var<storage, read> highs: array<vec2<u32>>;
@group(1) @binding(2) var<storage, read> scales: array<u32>;

fn six4(low: u32, high: u32, d: f32) -> vec4<f32> {
  return d * (vec4<f32>(unpack4xU8((low & 0x0f0f0f0fu) | ((high & 0x03030303u) << 4u))) - 32.0);
}

fn weights32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let at = slot(row, block, 1u, 0u);
  let w = codes[at];
  let h = highs[at];
  let s = unpack2x16float(scales[at]);
  return array<vec4<f32>, 8>(
    six4(w.x, h.x, s.x), six4(w.y, h.x >> 2u, s.x), six4(w.z, h.x >> 4u, s.x), six4(w.w, h.x >> 6u, s.x),
    six4(w.x >> 4u, h.y, s.y), six4(w.y >> 4u, h.y >> 2u, s.y), six4(w.z >> 4u, h.y >> 4u, s.y), six4(w.w >> 4u, h.y >> 6u, s.y));
}
