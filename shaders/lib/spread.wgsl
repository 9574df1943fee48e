// Four byte codes, lowest first, each left at its position in the word: code j times 256^j. The kernel divides the
// other factor by the same power (SPREAD), which is exact, so nothing is shifted. Codes are below 128, so the integers
// are positive.
fn bytes4(w: u32) -> vec4<f32> {
  return vec4<f32>(vec4<i32>(vec4<u32>(w) & vec4<u32>(0xffu, 0xff00u, 0xff0000u, 0xff000000u)));
}

const SPREAD = vec4<f32>(1.0, 256.0, 65536.0, 16777216.0);
