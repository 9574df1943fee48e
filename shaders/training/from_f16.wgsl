// y[r, ·] = row r, as packed by training/to_f16.wgsl, in f32.   One workgroup per row.
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> size: vec4<u32>; // rows, workgroups in x

const W = ${W}u;
const WORDS = ${WORDS}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = min(group.y * size.y + group.x, size.x - 1u);
  let power = bitcast<f32>(x[row * WORDS + WORDS - 1u]);
  for (var i = lane; i < WORDS - 1u; i += ${THREADS}u) {
    let both = power * unpack2x16float(x[row * WORDS + i]);
    y[row * W + 2u * i] = both.x;
    if (2u * i + 1u < W) { y[row * W + 2u * i + 1u] = both.y; }
  }
}
