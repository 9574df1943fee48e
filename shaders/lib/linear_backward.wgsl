// dx[t, k] (+)= Σ_n dy[t, n] W[n, k]      dy [T, N], dx [T, K]; the bindings of both kernels, and how they read and
// write.
@group(0) @binding(0) var<storage, read> dy: array<${DY}>;
@group(0) @binding(1) var<storage, read_write> dx: array<${VEC}>;
// shape: end of this dispatch's rows, first row of the shard, rows of the matrix, tokens, its first row
@group(0) @binding(2) var<storage, read> shape: array<u32>;

const K = ${K}u;

// Four gradients, starting at a row of the shard; zero from the end of this dispatch's rows on.
fn gradients4(token: u32, row: u32) -> vec4<f32> {
  let at = token * shape[2] + shape[1] + row;
#if DY_VECTORS
  if (row >= shape[0]) { return vec4<f32>(0.0); }
  return dy[at / 4u];
#else
  var v = vec4<f32>(0.0);
  for (var j = 0u; j < 4u; j++) {
    if (row + j < shape[0]) { v[j] = dy[at + j]; }
  }
  return v;
#endif
}

// Writes or adds four columns, starting at k, where they exist.
fn store(token: u32, k: u32, sum: vec4<f32>) {
#if SCALAR
  for (var j = 0u; j < 4u; j++) {
    if (k + j < K) {
#if ADD
      dx[token * K + k + j] += sum[j];
#else
      dx[token * K + k + j] = sum[j];
#endif
    }
  }
#else
  if (k >= K) { return; }
  let at = (token * K + k) / 4u;
#if ADD
  dx[at] += sum;
#else
  dx[at] = sum;
#endif
#endif
}
