// y[t, n] = Σ_k W[n, k] x[t, k] (+ bias[n]) (+ residual[t, n])      few tokens: T = COLUMNS of them share each weight that is read.
// One workgroup: ROWS consecutive rows; its THREADS invocations share the blocks of K between them.
@group(0) @binding(0) var<storage, read> x: array<${XVEC}>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> shape: vec4<u32>; // rows of this shard, first row, rows of the matrix, workgroups in x
#if BIAS
@group(0) @binding(3) var<storage, read> bias: array<f32>;
#endif
#if RESIDUAL
@group(0) @binding(4) var<storage, read> residual: array<f32>;
#endif

const K = ${K}u;
const ROWS = ${ROWS}u;
const COLUMNS = ${COLUMNS}u;

fn inputs4(column: u32, at: u32) -> vec4<f32> {
#if RAGGED
  var v = vec4<f32>(0.0);
  for (var j = 0u; j < 4u; j++) {
    if (at + j < K) { v[j] = x[column * K + at + j]; }
  }
  return v;
#else
  return x[(column * K + at) / 4u];
#endif
}

@compute @workgroup_size(${THREADS})
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
#if SUBGROUPS
  @builtin(subgroup_invocation_id) subgroup_lane: u32,
  @builtin(subgroup_id) subgroup: u32,
  @builtin(num_subgroups) subgroups: u32,
#endif
) {
#if !SUBGROUPS
  let subgroup_lane = 0u; let subgroup = 0u; let subgroups = 1u;
#endif
  let first = (group.y * shape.w + group.x) * ROWS;
  if (first >= shape.x) { return; }
  var sums: array<f32, ${ROWS_COLUMNS}>;
  for (var block = lane; block < BLOCKS; block += ${THREADS}u) {
    var v: array<vec4<f32>, ${COLUMNS_8}>;
    for (var c = 0u; c < COLUMNS; c++) {
      for (var i = 0u; i < 8u; i++) { v[c * 8u + i] = inputs4(c, block * 32u + i * 4u); }
    }
    for (var r = 0u; r < ROWS; r++) {
      let w = weights32(min(first + r, shape.x - 1u), block);
      for (var c = 0u; c < COLUMNS; c++) {
        var sum = w[0] * v[c * 8u];
        for (var i = 1u; i < 8u; i++) { sum += w[i] * v[c * 8u + i]; }
        sums[r * COLUMNS + c] += dot(sum, vec4<f32>(1.0));
      }
    }
  }
  for (var r = 0u; r < ROWS; r++) {
    for (var c = 0u; c < COLUMNS; c++) {
      var total = reduce_sum(sums[r * COLUMNS + c], lane, subgroup_lane, subgroup, subgroups);
      if (lane == (r * COLUMNS + c) % ${THREADS}u && first + r < shape.x) {
        let row = shape.y + first + r;
#if BIAS
        total += bias[row];
#endif
#if RESIDUAL
        total += residual[c * shape.z + row];
#endif
        y[c * shape.z + row] = total;
      }
    }
  }
}
