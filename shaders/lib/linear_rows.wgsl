// The kernels by rows: y[t, n] = Σ_k W[n, k] x[t, k], where an invocation computes whole rows, for few tokens. Here are
// their bindings, and how they read inputs and write results.
//
// One workgroup handles one group of 32 rows (in memory order) from each of SETS equal sections of the matrix, and
// TOKENS tokens. LANES invocations share the rows, OWN of each set: sum r of an invocation belongs to row
// row + r % OWN of set r / OWN.
//
// Before the product (NORM): x[t, k] / sqrt(mean(x[t]²) + EPS) * gamma[k]; the inverse root is one factor per token and
// is applied to the sum. After it: + bias[n]; then act(gate) * up (GATED: gate row n and up row n + N/2 are the two
// sets), act(y) (ACTIVATED), or adding residual[t, n] (RESIDUAL).
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
const TOKENS = ${TOKENS}u;

// Four inputs of a token, from k on.
fn inputs4(token: u32, k: u32) -> vec4<f32> {
#if RAGGED
  let width = shape[6];
  var v = vec4<f32>(0.0);
  for (var j = 0u; j < 4u; j++) {
    if (k + j < width) { v[j] = x[token * width + k + j]; }
  }
  return v;
#else
  return x[token * BLOCKS * 8u + k / 4u];
#endif
}

// Writes an invocation's results for one token, if they exist.
fn store(token: u32, row: u32, row_sums: array<f32, ${ROWS}>) {
  let rows = shape[0];
  let at = token * shape[2] + shape[1] + row;
  var sums = row_sums;
#if BIAS
#for r in ROWS
  sums[${r}] += bias[min(shape[1] + row + ${r}u % OWN + ${r}u / OWN * rows, arrayLength(&bias) - 1u)];
#end
#endif
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
