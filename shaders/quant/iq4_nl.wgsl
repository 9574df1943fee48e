// iq4_nl: byte j holds q[j] and q[j + 16], each the index of one of 16 uneven levels; an f16 scale per block of 32: w =
// d level(q).
@group(1) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(1) @binding(1) var<storage, read> scales: array<u32>;

// The levels -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113, computed by rounding a polynomial of degree 4
// that differs from each by less than 0.44. Rejected: an array, because indexing it goes through memory on some
// devices.
fn levels4(w: u32) -> vec4<f32> {
  let q = bytes4(w) - 8.0;
  return round(1.433 + q * (11.44 + q * (q * (0.08184 + q * 0.001586) - 0.01681)));
}
fn low4(w: u32) -> vec4<f32> { return levels4(w & 0x0f0f0f0fu); }
fn high4(w: u32) -> vec4<f32> { return levels4((w >> 4u) & 0x0f0f0f0fu); }

fn codes32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let w = codes[slot(row, block, 1u, 0u)];
  return array<vec4<f32>, 8>(
    low4(w.x), low4(w.y), low4(w.z), low4(w.w), high4(w.x), high4(w.y), high4(w.z), high4(w.w));
}

fn scales32(row: u32, block: u32) -> vec4<f32> {
  let at = slot(row, block, 1u, 0u);
  let d = unpack2x16float(scales[at >> 1u] >> ((at & 1u) * 16u)).x;
  return vec4<f32>(d, 0.0, d, 0.0);
}

fn packed4(v: vec4<f32>) -> u32 { return pack4xI8(vec4<i32>(v)); }

fn packed32(row: u32, block: u32) -> array<vec4<u32>, 2> {
  let c = codes32(row, block);
  return array<vec4<u32>, 2>(
    vec4<u32>(packed4(c[0]), packed4(c[1]), packed4(c[2]), packed4(c[3])),
    vec4<u32>(packed4(c[4]), packed4(c[5]), packed4(c[6]), packed4(c[7])));
}

#if MATRICES
struct Stored { codes: vec4<u32>, scales: u32, shift: u32 }

fn stored32(row: u32, block: u32) -> Stored {
  let at = slot(row, block, 1u, 0u);
  return Stored(codes[at], scales[at >> 1u], (at & 1u) * 16u);
}

fn unpack32(s: Stored) -> array<vec4<f32>, 8> {
  let d = unpack2x16float(s.scales >> s.shift).x;
  let w = s.codes;
  return array<vec4<f32>, 8>(
    low4(w.x) * d, low4(w.y) * d, low4(w.z) * d, low4(w.w) * d,
    high4(w.x) * d, high4(w.y) * d, high4(w.z) * d, high4(w.w) * d);
}
#endif
