// Unpacking without shifts to the right, as in slot.wgsl: bytes are masked where they stand, made floats and scaled
// down, which is exact.
const BYTES = vec4<u32>(0xffu, 0xff00u, 0xff0000u, 0xff000000u);
const DOWN = vec4<f32>(1.0, 0.00390625, 0.0000152587890625, 0.000000059604644775390625);

// Codes below 128.
fn bytes4(w: u32) -> vec4<f32> { return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(w) & BYTES)) * DOWN; }

// The upper byte has its sign where it stands; the others get 128 added, and lose it again.
fn signed4(w: u32) -> vec4<f32> {
  return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(w ^ 0x00808080u) & BYTES)) * DOWN - vec4<f32>(128.0, 128.0, 128.0, 0.0);
}

