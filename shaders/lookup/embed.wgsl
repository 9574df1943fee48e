// y[t] = SCALE * table[tokens[t]]      table [V, D] in any format, y [T, D]. Each shard's dispatch writes the tokens
// whose rows it holds, and leaves the others unchanged.
@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> shard: vec4<u32>; // first row, rows

const D = ${D}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let token = tokens[group.x];
  if (token < shard.x || token >= shard.x + shard.y) { return; }
  for (var block = lane; block < BLOCKS; block += ${THREADS}u) {
    let w = weights32(token - shard.x, block);
    for (var i = 0u; i < 8u; i++) {
      let v = w[i] * ${SCALE};
      let column = block * 32u + i * 4u;
#if RAGGED
      for (var j = 0u; j < 4u; j++) {
        if (column + j < D) { y[group.x * D + column + j] = v[j]; }
      }
#else
      let at = group.x * D + column;
      y[at] = v.x; y[at + 1u] = v.y; y[at + 2u] = v.z; y[at + 3u] = v.w;
#endif
    }
  }
}
