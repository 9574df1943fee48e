// q4_0: byte j holds q[j] and q[j + 16]; an f16 scale a block of 32: w = d (q - 8).
@group(1) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(1) @binding(1) var<storage, read> scales: array<u32>;

fn scale_of(row: u32, block: u32) -> f32 {
  let at = slot(row, block, 1u, 0u);
  let pair = unpack2x16float(scales[at >> 1u]);
  return select(pair.x, pair.y, (at & 1u) == 1u);
}

fn low4(w: u32, d: f32) -> vec4<f32> { return d * (vec4<f32>(unpack4xU8(w & 0x0f0f0f0fu)) - 8.0); }
fn high4(w: u32, d: f32) -> vec4<f32> { return d * (vec4<f32>(unpack4xU8((w >> 4u) & 0x0f0f0f0fu)) - 8.0); }

fn weights32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let w = codes[slot(row, block, 1u, 0u)];
  let d = scale_of(row, block);
  return array<vec4<f32>, 8>(low4(w.x, d), low4(w.y, d), low4(w.z, d), low4(w.w, d), high4(w.x, d), high4(w.y, d), high4(w.z, d), high4(w.w, d));
}
