// f16: 4 vectors of 8 weights per block, unpacked without the f16 feature.
@group(1) @binding(0) var<storage, read> values: array<vec4<u32>>;

fn first4(w: vec4<u32>) -> vec4<f32> { return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }
fn second4(w: vec4<u32>) -> vec4<f32> { return vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w)); }

fn codes32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let at = slot(row, block, 4u, 0u);
  let a = values[at];
  let b = values[at + 32u];
  let c = values[at + 64u];
  let d = values[at + 96u];
  return array<vec4<f32>, 8>(
    first4(a), second4(a), first4(b), second4(b), first4(c), second4(c), first4(d), second4(d));
}

fn scales32(row: u32, block: u32) -> vec4<f32> { return vec4<f32>(1.0, 0.0, 1.0, 0.0); }

#if MATRICES
struct Stored { a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32> }

fn stored32(row: u32, block: u32) -> Stored {
  let at = slot(row, block, 4u, 0u);
  return Stored(values[at], values[at + 32u], values[at + 64u], values[at + 96u]);
}

fn unpack32(s: Stored) -> array<vec4<f32>, 8> {
  return array<vec4<f32>, 8>(
    first4(s.a), second4(s.a), first4(s.b), second4(s.b), first4(s.c), second4(s.c), first4(s.d), second4(s.d));
}
#endif
