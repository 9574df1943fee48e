// y[t, n] = Σ_k W[n, k] x[t, k], by rows: an invocation computes whole rows, and sums over invocations are needed only
// where K is split. One workgroup handles one group of 32 rows (in memory order) from each of SETS equal sections of
// the matrix, and COLUMNS tokens. LANES invocations share the rows, OWN of each set, and PARTS such groups of
// invocations share the blocks of K.
//
// Before the product (NORM): x[t, k] / sqrt(mean(x[t]²) + EPS) * gamma[k]; the inverse root is one factor per token and
// is applied to the sum. After it: + bias[n]; then act(gate) * up (GATED: gate row n and up row n + N/2 are the two
// sets), act(y) (ACTIVATED), or adding residual[t, n] (RESIDUAL).
//
// SHUFFLE: a subgroup of LANES invocations reads each input once and passes it around, instead of every invocation
// reading every input. SPREAD_CODES: codes are multiplied by 256^j (lib/spread.wgsl), and the inputs are divided by it.
@group(0) @binding(0) var<storage, read> x: array<${XVEC}>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
// shape: rows of a set, first row, width of y, workgroups in x, tokens, blocks, K
@group(0) @binding(2) var<storage, read> shape: array<u32>;
#if NORM
@group(0) @binding(3) var<storage, read> gamma: array<vec4<f32>>;
#endif
#if BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;
#endif
#if RESIDUAL
@group(0) @binding(5) var<storage, read> residual: array<f32>;
#endif

const LANES = ${LANES}u;
const OWN = 32u / LANES;
const PARTS = ${PARTS}u;
const COLUMNS = ${COLUMNS}u;

#if SPLIT_K
var<workgroup> shared_sums: array<f32, ${SHARED_SUMS}>; // [sum, LANES * PARTS]
#endif
#if NORM
var<workgroup> shared_squares: array<f32, ${SHARED_SQUARES}>; // [COLUMNS, LANES * PARTS]
#endif

fn inputs4(token: u32, at: u32) -> vec4<f32> {
#if RAGGED
  let k = shape[6];
  var v = vec4<f32>(0.0);
  for (var j = 0u; j < 4u; j++) {
    if (at + j < k) { v[j] = x[token * k + at + j]; }
  }
  return v;
#else
  return x[token * BLOCKS * 8u + at / 4u];
#endif
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  BLOCKS = shape[5];
  let blocks = shape[5]; // uniform for the browser's compiler, unlike a private variable
  let rows = shape[0];
  let tokens = shape[4];
  let row_group = group.y * shape[3] + group.x;
  if (row_group * 32u >= rows) { return; }
  let lane = index % LANES;
  let part = index / LANES;
  let row = row_group * 32u + lane * OWN;
#for c in COLUMNS
  let token_${c} = min(group.z * COLUMNS + ${c}u, tokens - 1u);
  var squares_${c} = 0.0;
#for r in ROWS
  var sum_${r}_${c} = 0.0;
#end
#end
#if SHUFFLE
  for (var block = 0u; block < blocks; block++) {
#else
  for (var block = part; block < blocks; block += PARTS) {
#endif
#for c in COLUMNS
#if SHUFFLE
    var held_${c}: array<vec4<f32>, ${HELD}>;
#for h in HELD
    held_${c}[${h}] = inputs4(token_${c}, block * 32u + (${h}u * LANES + lane) * 4u);
#if NORM
    squares_${c} += dot(held_${c}[${h}], held_${c}[${h}]);
    held_${c}[${h}] *= gamma[block * 8u + ${h}u * LANES + lane];
#endif
#if SPREAD_CODES
    held_${c}[${h}] *= 1.0 / SPREAD;
#endif
#end
#else
#if NORM
    for (var i = lane; i < 32u; i += LANES) {
      let own = inputs4(token_${c}, block * 32u + i / 4u * 4u)[i % 4u];
      squares_${c} += own * own;
    }
#endif
#endif
#end
#for r in ROWS
    let weights_${r} = codes32(row + ${r}u % OWN + ${r}u / OWN * rows, block);
    let scales_${r} = scales32(row + ${r}u % OWN + ${r}u / OWN * rows, block);
#end
#for c in COLUMNS
    {
      var inputs_low = 0.0;
      var inputs_high = 0.0;
#for r in ROWS
      var low_${r} = 0.0;
      var high_${r} = 0.0;
#end
#for i in 4
      {
#if SHUFFLE
        let v = ${PASS}(held_${c}[${i}u / LANES], ${i}u % LANES);
        let e = ${PASS}(held_${c}[(${i}u + 4u) / LANES], (${i}u + 4u) % LANES);
#else
#if NORM
        let v = inputs4(token_${c}, block * 32u + ${i}u * 4u) * gamma[block * 8u + ${i}u];
        let e = inputs4(token_${c}, block * 32u + ${i}u * 4u + 16u) * gamma[block * 8u + ${i}u + 4u];
#else
        let v = inputs4(token_${c}, block * 32u + ${i}u * 4u);
        let e = inputs4(token_${c}, block * 32u + ${i}u * 4u + 16u);
#endif
#endif
#if OFFSET
#if SPREAD_CODES
        inputs_low += dot(v, SPREAD);
        inputs_high += dot(e, SPREAD);
#else
        inputs_low += v.x + v.y + v.z + v.w;
        inputs_high += e.x + e.y + e.z + e.w;
#endif
#endif
#for r in ROWS
        low_${r} += dot(weights_${r}[${i}], v);
        high_${r} += dot(weights_${r}[${i} + 4], e);
#end
      }
#end
#for r in ROWS
#if OFFSET
      sum_${r}_${c} += scales_${r}.x * low_${r} + scales_${r}.z * high_${r} - scales_${r}.y * inputs_low - scales_${r}.w * inputs_high;
#else
      sum_${r}_${c} += scales_${r}.x * low_${r} + scales_${r}.z * high_${r};
#endif
#end
    }
#end
  }
#if SPLIT_K
#for c in COLUMNS
#for r in ROWS
  shared_sums[(${r}u * COLUMNS + ${c}u) * LANES * PARTS + index] = sum_${r}_${c};
#end
#end
#endif
#if NORM
  // Sum over the parts first, then over the lanes; the lanes of the first part do both.
#for c in COLUMNS
  shared_squares[${c}u * LANES * PARTS + index] = squares_${c};
#end
  workgroupBarrier();
  if (part == 0u) {
#for c in COLUMNS
    for (var p = 1u; p < PARTS; p++) { squares_${c} += shared_squares[${c}u * LANES * PARTS + p * LANES + lane]; }
    shared_squares[${c}u * LANES * PARTS + lane] = squares_${c};
#end
  }
#endif
#if BARRIER
  workgroupBarrier();
#endif
  if (part != 0u) { return; }
#for c in COLUMNS
  if (group.z * COLUMNS + ${c}u < tokens) {
    let at = token_${c} * shape[2] + shape[1] + row;
#if NORM
    var squares = 0.0;
    for (var l = 0u; l < LANES; l++) { squares += shared_squares[${c}u * LANES * PARTS + l]; }
    let scale = inverseSqrt(squares / f32(shape[6]) + ${EPS});
#endif
#for r in ROWS
#if SPLIT_K
    for (var p = 1u; p < PARTS; p++) { sum_${r}_${c} += shared_sums[(${r}u * COLUMNS + ${c}u) * LANES * PARTS + p * LANES + lane]; }
#endif
#if NORM
    sum_${r}_${c} *= scale;
#endif
#if BIAS
    sum_${r}_${c} += bias[min(shape[1] + row + ${r}u % OWN + ${r}u / OWN * rows, arrayLength(&bias) - 1u)];
#endif
#end
    var sums: array<f32, ${ROWS}>;
#for r in ROWS
    sums[${r}] = sum_${r}_${c};
#end
#for r in OUTPUT_ROWS
    if (row + ${r}u % OWN < rows) {
      let to = at + ${r}u % OWN + ${r}u / OWN * rows;
#if GATED
      y[to] = activate(sums[${r}]) * sums[${r}u + OWN];
#else
#if ACTIVATED
      y[to] = activate(sums[${r}]);
#else
#if RESIDUAL
      y[to] = sums[${r}] + residual[to];
#else
      y[to] = sums[${r}];
#endif
#endif
#endif
    }
#end
  }
#end
}
