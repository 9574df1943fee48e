// The gated delta rule, token by token: S = g S, u = β (v - Sᵀ k), S = S + k uᵀ, y = Sᵀ q; q and k divided by their
// lengths, β = sigmoid(b), g = exp(A softplus(a + bias)). One invocation per column of a head's state S [DK, DV] loops
// over the tokens; y needs only the state before the change, because Sᵀ q = (g S)ᵀ q + (k·q) u. mixed
// [T, 2 K DK + H DV]: q, k, v; gates [T, 2H]: b, a; state [sequences, H, DK, DV].
@group(0) @binding(0) var<storage, read> mixed: array<f32>;
@group(0) @binding(1) var<storage, read> gates: array<f32>;
@group(0) @binding(2) var<storage, read> constants: array<f32>; // A, bias, [H] each
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> bases: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<storage, read_write> state: array<f32>;
// size: end of this dispatch's tokens, invocations in x, its first token
@group(0) @binding(7) var<storage, read> size: vec4<u32>;

const H = ${H}u;
const DV = ${DV}u;
const K = ${K}u;
const DK = ${DK}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let index = id.y * size.y + id.x;
  if (index >= H * DV) { return; }
  let head = index / DV;
  let key = ${KEY_OF_HEAD};
  for (var t = size.z; t < size.x; t++) {
    let begun = positions[t] > 0u;
    let raw = gates[t * 2u * H + H + head] + constants[H + head];
    let step = max(raw, 0.0) + log(1.0 + exp(-abs(raw)));
    let decay = select(0.0, exp(max(step * constants[head], -80.0)), begun);
    let beta = 1.0 / (1.0 + exp(clamp(-gates[t * 2u * H + head], -80.0, 80.0)));
    let row = t * (2u * K * DK + H * DV);
    let from_q = row + key * DK;
    let from_k = from_q + K * DK;
    let place = (bases[t] / ${CONTEXT}u * H + head) * DK * DV + index % DV;
    var memory = 0.0;
    var found = 0.0;
    var q_square = 0.0;
    var k_square = 0.0;
    var product = 0.0;
    var at = place;
    for (var i = 0u; i < DK; i++) {
      // The state of a sequence that begins may hold anything, even NaN.
      let s = select(0.0, state[at], begun);
      let q = mixed[from_q + i];
      let k = mixed[from_k + i];
      memory += s * k;
      found += s * q;
      q_square += q * q;
      k_square += k * k;
      product += q * k;
      at += DV;
    }
    let of_q = inverseSqrt(q_square + ${DELTA_EPS}) * ${QUERY_SCALE};
    let of_k = inverseSqrt(k_square + ${DELTA_EPS});
    let change = beta * (mixed[row + 2u * K * DK + index] - decay * memory * of_k);
    y[t * H * DV + index] = of_q * (decay * found + product * of_k * change);
    at = place;
    for (var i = 0u; i < DK; i++) {
      state[at] = select(0.0, state[at], begun) * decay + mixed[from_k + i] * of_k * change;
      at += DV;
    }
  }
}
