// f32: 8 vectors of 4 weights a block.
@group(1) @binding(0) var<storage, read> values: array<vec4<f32>>;

fn weights32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let at = (row * BLOCKS + block) * 8u;
  return array<vec4<f32>, 8>(values[at], values[at + 1u], values[at + 2u], values[at + 3u], values[at + 4u], values[at + 5u], values[at + 6u], values[at + 7u]);
}
