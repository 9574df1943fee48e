// dx[t] = Σ dy[r] over the r with rows[r] = t      dy [R, D], rows [R], dx [T, D]. One workgroup per token (and PIECE
// columns) searches all r, so that a row selected several times needs no atomics.
@group(0) @binding(0) var<storage, read> dy: array<${VEC}>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read_write> dx: array<${VEC}>;
@group(0) @binding(3) var<storage, read> count: vec4<u32>; // R
const WIDTH = ${WIDTH}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let begin = group.y * ${PIECE}u + lane;
  let end = min(WIDTH, (group.y + 1u) * ${PIECE}u);
  for (var i = begin; i < end; i += ${THREADS}u) { dx[group.x * WIDTH + i] = ${VEC}(0.0); }
  for (var r = 0u; r < count.x; r++) {
    if (rows[r] == group.x) {
      for (var i = begin; i < end; i += ${THREADS}u) { dx[group.x * WIDTH + i] += dy[r * WIDTH + i]; }
    }
  }
}
