// The kernels that loop over the tokens, on software devices with subgroups of 4: their bindings apart from the inputs,
// and how they write results. One workgroup is one subgroup and handles 32 rows (16 of each half where GATED), 8 per
// lane, and up to TOKENS tokens.
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
// shape: rows of a set, first row, width of y, workgroups in x, tokens, blocks
@group(0) @binding(1) var<storage, read> shape: array<u32>;
#if BIAS
@group(0) @binding(${BIAS_AT}) var<storage, read> bias: array<f32>;
#endif
#if RESIDUAL
@group(0) @binding(${RESIDUAL_AT}) var<storage, read> residual: array<f32>;
#endif

const OWN = ${OWN}u; // rows per lane in each set
const TOKENS = ${TOKENS}u;

// Writes the result of one row and token. GATED: `up` is the sum of the matching row of the other half.
fn store(token: u32, row: u32, row_sum: f32, up: f32) {
  let n = shape[1] + row;
  let to = token * shape[2] + n;
  var sum = row_sum;
#if BIAS
  sum += bias[n];
#endif
#if GATED
  var other = up;
#if BIAS
  other += bias[n + shape[0]];
#endif
  sum = activate(sum) * other;
#endif
#if ACTIVATED
  sum = activate(sum);
#endif
#if RESIDUAL
  sum += residual[to];
#endif
  y[to] = sum;
}
