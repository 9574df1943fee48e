// Four byte codes, lowest first.
fn bytes4(w: u32) -> vec4<f32> { return vec4<f32>(unpack4xU8(w)); }
// Four int8.
fn signed4(w: u32) -> vec4<f32> { return vec4<f32>(unpack4xI8(w)); }
