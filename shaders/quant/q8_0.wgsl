// q8_0: 32 int8 and an f16 scale per block: w = d q.
@group(1) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(1) @binding(1) var<storage, read> scales: array<u32>;

fn codes32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let at = slot(row, block, 2u, 0u);
  let a = codes[at];
  let b = codes[at + 32u];
  return array<vec4<f32>, 8>(
    signed4(a.x), signed4(a.y), signed4(a.z), signed4(a.w), signed4(b.x), signed4(b.y), signed4(b.z), signed4(b.w));
}

fn scales32(row: u32, block: u32) -> vec4<f32> {
  let at = slot(row, block, 1u, 0u);
  let d = unpack2x16float(scales[at >> 1u] >> ((at & 1u) * 16u)).x;
  return vec4<f32>(d, 0.0, d, 0.0);
}

fn packed32(row: u32, block: u32) -> array<vec4<u32>, 2> {
  let at = slot(row, block, 2u, 0u);
  return array<vec4<u32>, 2>(codes[at], codes[at + 32u]);
}

#if MATRICES
struct Stored { first: vec4<u32>, second: vec4<u32>, scales: u32, shift: u32 }

fn stored32(row: u32, block: u32) -> Stored {
  let at = slot(row, block, 2u, 0u);
  let scale_at = slot(row, block, 1u, 0u);
  return Stored(codes[at], codes[at + 32u], scales[scale_at >> 1u], (scale_at & 1u) * 16u);
}

fn unpack32(s: Stored) -> array<vec4<f32>, 8> {
  let d = unpack2x16float(s.scales >> s.shift).x;
  let a = s.first;
  let b = s.second;
  return array<vec4<f32>, 8>(
    signed4(a.x) * d, signed4(a.y) * d, signed4(a.z) * d, signed4(a.w) * d,
    signed4(b.x) * d, signed4(b.y) * d, signed4(b.z) * d, signed4(b.w) * d);
}
#endif
