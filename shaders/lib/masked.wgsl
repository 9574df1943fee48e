// Unpacking without right shifts, for the reason given in slot.wgsl: each byte is masked at its position in the word,
// converted to f32 and scaled down, which is exact.
const BYTES = vec4<u32>(0xffu, 0xff00u, 0xff0000u, 0xff000000u);
const DOWN = vec4<f32>(1.0, 0.00390625, 0.0000152587890625, 0.000000059604644775390625);

// Four codes below 128.
fn bytes4(w: u32) -> vec4<f32> { return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(w) & BYTES)) * DOWN; }

// Four int8. The upper byte's sign is the word's sign bit; to the others 128 is added, and subtracted again at the end.
fn signed4(w: u32) -> vec4<f32> {
  return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(w ^ 0x00808080u) & BYTES)) * DOWN - vec4<f32>(128.0, 128.0, 128.0, 0.0);
}

