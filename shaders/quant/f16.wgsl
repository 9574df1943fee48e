// f16: 4 vectors of 8 weights a block, unpacked without the f16 feature.
@group(1) @binding(0) var<storage, read> values: array<vec4<u32>>;

fn unpack8(w: vec4<u32>) -> array<vec4<f32>, 2> {
  return array<vec4<f32>, 2>(vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)), vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w)));
}

fn weights32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let at = slot(row, block, 4u, 0u);
  let a = unpack8(values[at]);
  let b = unpack8(values[at + 32u]);
  let c = unpack8(values[at + 64u]);
  let d = unpack8(values[at + 96u]);
  return array<vec4<f32>, 8>(a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]);
}
