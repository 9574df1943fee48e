// f32: 8 vectors of 4 weights per block.
@group(1) @binding(0) var<storage, read> values: array<vec4<f32>>;

fn codes32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let at = slot(row, block, 8u, 0u);
  return array<vec4<f32>, 8>(
    values[at], values[at + 32u], values[at + 64u], values[at + 96u],
    values[at + 128u], values[at + 160u], values[at + 192u], values[at + 224u]);
}

fn scales32(row: u32, block: u32) -> vec4<f32> { return vec4<f32>(1.0, 0.0, 1.0, 0.0); }

#if MATRICES
struct Stored { values: array<vec4<f32>, 8> }

fn stored32(row: u32, block: u32) -> Stored { return Stored(codes32(row, block)); }
fn unpack32(s: Stored) -> array<vec4<f32>, 8> { return s.values; }
#endif
