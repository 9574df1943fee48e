// What both kernels that choose a token share, beside lib/float_order.wgsl: bindings and noise. settings [R, 16]: 0
// temperature (0: the most likely token), 1 top_k (0: off), 2 top_p, 3 min_p, 4 repeat, 5 presence, 6 frequency, 7
// adjust, 8 and 9 the seed's bits.
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> settings: array<f32>;
@group(0) @binding(2) var<storage, read> peaks: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> counts: array<u32>;
@group(0) @binding(4) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(5) var<storage, read_write> positions: array<u32>;

const V = ${V}u;
const CHUNK = ${CHUNK}u;
const CHUNKS = ${CHUNKS}u;
const THREADS = ${THREADS}u;

// PCG hash (Jarzynski and Olano, 2020).
fn hash(value: u32) -> u32 {
  let state = value * 747796405u + 2891336453u;
  let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
  return (word >> 22u) ^ word;
}

fn gumbel(seed: u32, id: u32) -> f32 {
  // Below 1 also where the sum is rounded to 16777216: the noise would be infinite, and any token would win.
  let uniform01 = min((f32(hash(hash(id) ^ seed) >> 8u) + 0.5) / 16777216.0, 0.99999994);
  return -log(-log(uniform01));
}
