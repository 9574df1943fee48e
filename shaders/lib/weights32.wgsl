// 32 consecutive weights of a row, from any format: codes times scale minus offset, for each half of the block.
fn weights32(row: u32, block: u32) -> array<vec4<f32>, 8> {
  let c = codes32(row, block);
  let s = scales32(row, block);
  return array<vec4<f32>, 8>(
    c[0] * s.x - s.y, c[1] * s.x - s.y, c[2] * s.x - s.y, c[3] * s.x - s.y,
    c[4] * s.z - s.w, c[5] * s.z - s.w, c[6] * s.z - s.w, c[7] * s.z - s.w);
}
