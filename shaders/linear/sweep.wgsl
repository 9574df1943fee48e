// y[t, n] = Σ_k W[n, k] x[t, k] for many tokens on software devices with subgroups of 4. Weights are unpacked once for
// all tokens of the workgroup. The loop over the tokens is not unrolled, because the compilers of such devices keep
// nothing in registers in long texts. Each lane reads a quarter of a block's inputs; the subgroup broadcasts them.
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>; // [T, K]

@compute @workgroup_size(4)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  BLOCKS = shape[5];
  EIGHTS = (shape[5] + 7u) / 8u;
  let blocks = shape[5];
  let rows = shape[0];
  let row_group = group.y * shape[3] + group.x;
  if (row_group * 4u * OWN >= rows) { return; }
  let row = row_group * 4u * OWN + lane * OWN;
  let first_token = group.z * TOKENS;
  let count = min(TOKENS, shape[4] - first_token);
  var sums: array<array<f32, 8>, TOKENS>;
  for (var block = 0u; block < blocks; block++) {
#for r in 8
    let weights_${r} = weights32(row + ${r}u % OWN + ${r}u / OWN * rows, block);
#end
    for (var t = 0u; t < count; t++) {
      let at = ((first_token + t) * blocks + block) * 8u + lane;
      let low = x[at];
      let high = x[at + 4u];
#for r in 8
      var sum_${r} = 0.0;
#end
#for i in 4
      let v_${i} = quadBroadcast(low, ${i}u);
      let e_${i} = quadBroadcast(high, ${i}u);
#for r in 8
      sum_${r} += dot(weights_${r}[${i}], v_${i}) + dot(weights_${r}[${i} + 4], e_${i});
#end
#end
#for r in 8
      sums[t][${r}] += sum_${r};
#end
    }
  }
  for (var t = 0u; t < count; t++) {
    for (var r = 0u; r < OWN; r++) {
      if (row + r >= rows) { break; }
      store(first_token + t, row + r, sums[t][r], sums[t][(OWN + r) % 8u]);
    }
  }
}
