// Attention over one run (lib/attention_run.wgsl) where each invocation computes whole scores, for software devices and
// devices without subgroups.
var<workgroup> weights: array<f32, ${G_SPLIT}>; // [G, SPLIT]

// `query`: offset of the group's first query.
fn attend(token: u32, split: u32, kv: u32, query: u32, base: u32, position: u32, run: vec2<u32>, me: Invocation) {
  let lane = me.lane;
  let count = run.y - run.x;
  let first_row = cache_row(base, run.x);
#for g in G
  let slope_${g} = alibi_slope(kv * G + ${g}u);
#end
  for (var i = lane; i < count; i += ${THREADS}u) {
    let at = (run_row(first_row, base, run.x, i) * K + kv) * D4;
    // One variable per head: SwiftShader does not keep values stored in an array that is declared in a loop's body.
#for g in G
    var sum_${g} = 0.0;
#end
    for (var c = 0u; c < D4; c++) {
      let key = key4(at + c);
#for g in G
      sum_${g} += dot(query4(query + ${g}u * D4 + c), key);
#end
    }
#for g in G
    weights[${g}u * SPLIT + i] = score(sum_${g}, slope_${g}, position - run.x - i);
#end
  }
  workgroupBarrier();
  for (var g = 0u; g < G; g++) {
    var peak = -1e30;
    for (var i = lane; i < count; i += ${THREADS}u) { peak = max(peak, weights[g * SPLIT + i]); }
    peak = reduce_max(peak, me);
    var sum = 0.0;
    for (var i = lane; i < count; i += ${THREADS}u) {
      let w = exp(max(weights[g * SPLIT + i] - peak, -80.0));
      weights[g * SPLIT + i] = w;
      sum += w;
    }
    sum = reduce_sum(sum, me);
    if (lane == 0u) { write_weight(token, split, kv * G + g, peak, sum); }
  }
  workgroupBarrier();
  for (var c = lane; c < D4; c += ${THREADS}u) {
#for g in G
    var out_${g} = vec4<f32>(0.0);
#end
    for (var i = 0u; i < count; i++) {
      let value = value4((run_row(first_row, base, run.x, i) * K + kv) * D4 + c);
#for g in G
      out_${g} += weights[${g}u * SPLIT + i] * value;
#end
    }
    var to = part_of(token, split, kv * G) + c * 4u;
#for g in G
    partial[to] = out_${g}.x;
    partial[to + 1u] = out_${g}.y;
    partial[to + 2u] = out_${g}.z;
    partial[to + 3u] = out_${g}.w;
    to += D4 * 4u + 2u;
#end
  }
}
