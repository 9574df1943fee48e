// q4_k: byte j holds q[j] and q[j + 16]; a pair of f16 (d, m) a block of 32: w = d q - m.
@group(1) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(1) @binding(1) var<storage, read> scales: array<u32>;

fn low4(w: u32, s: vec2<f32>) -> vec4<f32> { return s.x * vec4<f32>(unpack4xU8(w & 0x0f0f0f0fu)) - s.y; }
fn high4(w: u32, s: vec2<f32>) -> vec4<f32> { return s.x * vec4<f32>(unpack4xU8((w >> 4u) & 0x0f0f0f0fu)) - s.y; }

fn weights32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let at = slot(row, block, 1u, 0u);
  let w = codes[at];
  let s = unpack2x16float(scales[at]);
  return array<vec4<f32>, 8>(low4(w.x, s), low4(w.y, s), low4(w.z, s), low4(w.w, s), high4(w.x, s), high4(w.y, s), high4(w.z, s), high4(w.w, s));
}
