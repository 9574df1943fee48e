// q8_0: 32 int8 and an f16 scale a block: w = d q.
@group(1) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(1) @binding(1) var<storage, read> scales: array<u32>;

fn scale_of(row: u32, block: u32) -> f32 {
  let at = slot(row, block, 1u, 0u);
  let pair = unpack2x16float(scales[at >> 1u]);
  return select(pair.x, pair.y, (at & 1u) == 1u);
}

fn signed4(w: u32) -> vec4<f32> { return vec4<f32>(unpack4xI8(w)); }

fn weights32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let at = slot(row, block, 2u, 0u);
  let a = codes[at];
  let b = codes[at + 32u];
  let d = scale_of(row, block);
  return array<vec4<f32>, 8>(d * signed4(a.x), d * signed4(a.y), d * signed4(a.z), d * signed4(a.w), d * signed4(b.x), d * signed4(b.y), d * signed4(b.z), d * signed4(b.w));
}
