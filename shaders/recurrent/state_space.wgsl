// The selective state space of Mamba-2, token by token: S[n] = exp(δ A) S[n] + δ B[n] x, y = (Σ_n C[n] S[n] + D x)
// silu(z) OUTPUT_SCALE, with δ = softplus(dt + bias). One invocation per channel of a head loops over the tokens. mixed
// [T, H P + 2 G N]: x, B, C; projection [T, W]: first z, and dt from column STEPS on; state [sequences, H, N, P].
@group(0) @binding(0) var<storage, read> mixed: array<f32>;
@group(0) @binding(1) var<storage, read> projection: array<f32>;
@group(0) @binding(2) var<storage, read> constants: array<f32>; // A, D, bias, [H] each
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> bases: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<storage, read_write> state: array<f32>;
// size: end of this dispatch's tokens, invocations in x, W, its first token
@group(0) @binding(7) var<storage, read> size: vec4<u32>;

const H = ${H}u;
const P = ${P}u;
const G = ${G}u;
const N = ${N}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let index = id.y * size.y + id.x;
  if (index >= H * P) { return; }
  let head = index / P;
  let group = head / (H / G);
  for (var t = size.w; t < size.x; t++) {
    let begun = positions[t] > 0u;
    let raw = projection[t * size.z + ${STEPS}u + head] + constants[2u * H + head];
    let delta = max(raw, 0.0) + log(1.0 + exp(-abs(raw)));
    let decay = exp(max(delta * constants[head], -80.0));
    let row = t * (H * P + 2u * G * N);
    let x = mixed[row + index];
    let from_b = row + H * P + group * N;
    let from_c = from_b + G * N;
    var at = (bases[t] / ${CONTEXT}u * H + head) * N * P + index % P;
    var sum = constants[H + head] * x;
    for (var n = 0u; n < N; n++) {
      let value = select(0.0, state[at], begun) * decay + delta * mixed[from_b + n] * x;
      state[at] = value;
      sum += value * mixed[from_c + n];
      at += P;
    }
    let z = projection[t * size.z + index];
    y[t * H * P + index] = sum * z / (1.0 + exp(clamp(-z, -80.0, 80.0))) * ${OUTPUT_SCALE};
  }
}
