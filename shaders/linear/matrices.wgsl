// y[t, n] = Σ_k W[n, k] x[t, k] (+ bias[n]) (+ residual[t, n])      For many tokens, on devices with cooperative
// matrices; lib/matrices.wgsl computes the sums. x in f16, [T, K] padded to blocks of 32.
@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> powers: array<f32>; // the same buffer
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> shape: vec4<u32>; // rows of this shard, first row, rows of the matrix, tokens
#if BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;
#endif
#if RESIDUAL
@group(0) @binding(5) var<storage, read> residual: array<f32>;
#endif

const X_STRIDE = BLOCKS * 8u + 2u; // vectors of a row of x

fn first_step() -> u32 { return 0u; }
fn last_step() -> u32 { return BLOCKS; }
fn x_offset() -> u32 { return 0u; }
fn stored(tile: u32, i: u32, step: u32) -> Stored { return stored32(min(tile * TN + i, shape.x - 1u), step); }
fn weights_at(i: u32) -> u32 { return i * W_PITCH; }

fn finish(token: u32, local: u32, sum: f32) {
  if (local >= shape.x) { return; }
  let row = shape.y + local;
  var total = sum;
#if BIAS
  total += bias[row];
#endif
#if RESIDUAL
  total += residual[token * shape.z + row];
#endif
  y[token * shape.z + row] = total;
}
