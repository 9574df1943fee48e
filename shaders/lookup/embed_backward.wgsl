// gradient[tokens[t]] += SCALE dy[t]      dy [T, D]; gradient in packed order (groups of 32 rows), like the weights.
// One workgroup per token (and PIECE columns); that of a token's first occurrence adds all its occurrences, in order.
@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(3) var<storage, read> count: vec4<u32>; // T

const D = ${D}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let first = group.x;
  let token = tokens[first];
  for (var t = 0u; t < first; t++) {
    if (tokens[t] == token) { return; }
  }
  for (var k = group.y * ${PIECE}u + lane; k < min(D, (group.y + 1u) * ${PIECE}u); k += ${THREADS}u) {
    var sum = 0.0;
    for (var t = first; t < count.x; t++) {
      if (tokens[t] == token) { sum += dy[t * D + k]; }
    }
    gradient[((token >> 5u) * ${QUADS}u + (k >> 2u)) * 128u + (token & 31u) * 4u + (k & 3u)] += ${SCALE} * sum;
  }
}
