// y[t, c] = Σ_j weight[c, j] u[t - KERNEL + 1 + j] (+ bias[c]), then SiLU; u is the columns of x from FIRST on. GATED:
// x has three sections (input gate, output gate, input), u is the first times the third, and the sum is multiplied by
// the second. One invocation per channel loops over the tokens; state [sequences, KERNEL - 1, C]: the last inputs of
// each sequence, oldest first.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read> bases: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<f32>;
@group(0) @binding(6) var<storage, read> size: vec4<u32>; // tokens, invocations in x, width of x
#if BIAS
@group(0) @binding(7) var<storage, read> bias: array<f32>;
#endif

const C = ${C}u;
const BEFORE = ${BEFORE}u; // KERNEL - 1

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let c = id.y * size.y + id.x;
  if (c >= C) { return; }
  let newest = weight[c * (BEFORE + 1u) + BEFORE];
  // Indexed by age: 0 is the input just before this token's.
#for j in BEFORE
  let weight_${j} = weight[c * (BEFORE + 1u) + BEFORE - 1u - ${j}u];
  var input_${j} = 0.0;
#end
  var place = 0u;
  for (var t = 0u; t < size.x; t++) {
    let next = bases[t] / ${CONTEXT}u * BEFORE * C + c;
    if (t == 0u || next != place || positions[t] == 0u) {
      if (t > 0u) {
#for j in BEFORE
        state[place + (BEFORE - 1u - ${j}u) * C] = input_${j};
#end
      }
      place = next;
      let begun = positions[t] > 0u;
#for j in BEFORE
      input_${j} = select(0.0, state[place + (BEFORE - 1u - ${j}u) * C], begun);
#end
    }
    let row = t * size.z + ${FIRST}u + c;
#if GATED
    var carried = x[row] * x[row + 2u * C];
#else
    var carried = x[row];
#endif
    var sum = newest * carried;
#if BIAS
    sum += bias[c];
#endif
#for j in BEFORE
    {
      let older = input_${j};
      sum += weight_${j} * older;
      input_${j} = carried;
      carried = older;
    }
#end
#if GATED
    y[t * C + c] = sum * x[row + C];
#else
    y[t * C + c] = sum / (1.0 + exp(clamp(-sum, -80.0, 80.0)));
#endif
  }
#for j in BEFORE
  state[place + (BEFORE - 1u - ${j}u) * C] = input_${j};
#end
}
