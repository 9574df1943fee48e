// y[r] = x[rows[r]]      x [T, D], rows [R], y [R, D].
@group(0) @binding(0) var<storage, read> x: array<${VEC}>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<${VEC}>;
const WIDTH = ${WIDTH}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let source = rows[group.x] * WIDTH;
  for (var i = lane; i < WIDTH; i += ${THREADS}u) { y[group.x * WIDTH + i] = x[source + i]; }
}
