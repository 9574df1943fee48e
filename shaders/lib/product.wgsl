// c[m, n] (+)= ALPHA Σ_k a[m, k] b[k, n], matrices given by strides. With SPLIT, part z of the sum is written to c[z,
// m, n] instead. PACKED: c is in packed order, as weights are: groups of 32 rows, with four consecutive columns of each
// row.
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
// size: M, N, K, K of one split; offset, row and column stride of a, b, c; splits
@group(0) @binding(3) var<storage, read> size: array<u32>;

// Writes or adds one result, if it is inside the matrix.
fn store(m: u32, n: u32, z: u32, sum: f32) {
  if (m >= size[0] || n >= size[1]) { return; }
#if SPLIT
  c[(z * size[0] + m) * size[1] + n] = sum;
#else
#if PACKED
  let at = size[10] + m / 32u * size[11] + n / 4u * 128u + m % 32u * 4u + n % 4u;
#else
  let at = size[10] + m * size[11] + n * size[12];
#endif
#if ADD
  c[at] += ${ALPHA} * sum;
#else
  c[at] = ${ALPHA} * sum;
#endif
#endif
}
