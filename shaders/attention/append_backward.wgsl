// dk[t] = dk_cache[bases[t] + positions[t]], dv[t] the same      caches [rows, K d], dk, dv [T, K d].
@group(0) @binding(0) var<storage, read> dk_cache: array<${VEC}>;
@group(0) @binding(1) var<storage, read> dv_cache: array<${VEC}>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read> bases: array<u32>;
@group(0) @binding(4) var<storage, read_write> dk: array<${VEC}>;
@group(0) @binding(5) var<storage, read_write> dv: array<${VEC}>;
const WIDTH = ${WIDTH}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = (bases[group.x] + positions[group.x]) * WIDTH;
  for (var i = lane; i < WIDTH; i += ${THREADS}u) {
    dk[group.x * WIDTH + i] = dk_cache[row + i];
    dv[group.x * WIDTH + i] = dv_cache[row + i];
  }
}
