// Scales and minima that 8 blocks share: multiples of 6 bits of two f16 numbers (weights/src/formats/shared.rs). A
// kernel sets or defines EIGHTS, the number of such groups of blocks in a row.

// As `slot`, for a plane with one vector for 8 blocks.
fn slot_of_eight(row: u32, block: u32) -> u32 {
  return (row & 0xffffffe0u) * EIGHTS + (block & 0xfffffff8u) * 4u + (row & 31u);
}

// The scale and minimum of a block, for both of its halves. `units`: what their multiples are of.
fn pair_of_eight(w: vec4<u32>, units: vec2<f32>, block: u32) -> vec4<f32> {
  let low = select(w.y, w.z, (block & 4u) != 0u) >> ((block & 3u) * 8u);
  let high = w.w >> ((block & 7u) * 4u);
  let steps = vec2<i32>(vec2<u32>(low & 63u, ((low >> 6u) & 3u) | ((high & 15u) << 2u)));
  let pair = units * vec2<f32>(steps);
  return vec4<f32>(pair, pair);
}
