// dx[t, k] (+)= Σ_n dy[t, n] W[n, k]      On devices with cooperative matrices; lib/matrices.wgsl computes the sums. dy
// in f16, [T, N] padded to blocks of 32 with zeros, so that rows beyond the last one add nothing.
@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> powers: array<f32>; // the same buffer
@group(0) @binding(2) var<storage, read_write> dx: array<f32>;
// shape: end of this dispatch's rows, first row of the shard, rows of the matrix, tokens, its first row
@group(0) @binding(3) var<storage, read> shape: array<u32>;

const K = ${K}u;
const X_STRIDE = ${N_BLOCKS}u * 8u + 2u; // vectors of a row of dy

fn first_step() -> u32 { return shape[4] / 32u; }
fn last_step() -> u32 { return (shape[0] + 31u) / 32u; }
fn x_offset() -> u32 { return shape[1] / 32u * 8u; }
fn stored(tile: u32, i: u32, step: u32) -> Stored {
  return stored32(min(step * 32u + i % 32u, shape[0] - 1u), min(tile * (TN / 32u) + i / 32u, BLOCKS - 1u));
}
fn weights_at(i: u32) -> u32 { return i % 32u * W_PITCH + i / 32u * 32u; }

fn finish(token: u32, column: u32, sum: f32) {
  if (column >= K) { return; }
#if ADD
  dx[token * K + column] += sum;
#else
  dx[token * K + column] = sum;
#endif
}
