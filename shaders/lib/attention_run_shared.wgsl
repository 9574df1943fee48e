// Attention over one run (lib/attention_run.wgsl) for hardware with subgroups. All invocations share the run's
// positions: LANES neighbours read neighbouring vectors of one key and add up their products, and SLOTS sets of D4
// invocations each read whole rows of values. Loads of several rows come before the first product, so that they are in
// flight together. Positions beyond the run's end are read as its last one, and their weights are zero.
const LANES = ${LANES}u;
const KEYS_AT_ONCE = ${THREADS}u / LANES;
const SLOTS = ${SLOTS}u;
const VALUES = ${VALUES}u; // rows of values that an invocation reads together
// Weights of one head, with room for whole steps of the loop over values, and padding against bank conflicts.
const PITCH = ${PITCH}u;

var<workgroup> weights: array<f32, ${G_PITCH}>; // [G, PITCH]
var<workgroup> parts: array<vec4<f32>, ${PARTS}>; // [HEADS, THREADS]

// Sum and maximum over the LANES neighbours; each of them gets the result.
fn lanes_sum(value: f32) -> f32 {
  var sum = value;
#for i in LANE_STEPS
  sum += subgroupShuffleXor(sum, 1u << ${i}u);
#end
  return sum;
}
fn lanes_max(value: f32) -> f32 {
  var peak = value;
#for i in LANE_STEPS
  peak = max(peak, subgroupShuffleXor(peak, 1u << ${i}u));
#end
  return peak;
}

// `query`: offset of the group's first query.
fn attend(token: u32, split: u32, kv: u32, query: u32, base: u32, position: u32, run: vec2<u32>, me: Invocation) {
  let count = run.y - run.x;
  let first_row = cache_row(base, run.x);
  // The order of invocations within a workgroup by subgroups: neighbours exchange values.
  let lane = me.subgroup * (${THREADS}u / me.subgroups) + me.subgroup_lane;
  let part = lane % LANES;
#if HEAD_EACH
  let slope = alibi_slope(kv * G + part);
#else
#for g in G
  let slope_${g} = alibi_slope(kv * G + ${g}u);
#end
#endif
  for (var start = 0u; start < count; start += KEYS_AT_ONCE * ${KEYS}u) {
#for u in KEYS
    let i_${u} = start + ${u}u * KEYS_AT_ONCE + lane / LANES;
    let at_${u} = (run_row(first_row, base, run.x, min(i_${u}, count - 1u)) * K + kv) * D4 + part;
#for j in STEPS
    let key_${u}_${j} = key4(at_${u} + ${j}u * LANES);
#end
#end
#for g in G
#for u in KEYS
    var sum_${u}_${g} = 0.0;
#end
#for j in STEPS
    let query_${j}_${g} = query4(query + ${g}u * D4 + ${j}u * LANES + part);
#for u in KEYS
    sum_${u}_${g} += dot(query_${j}_${g}, key_${u}_${j});
#end
#end
#for u in KEYS
    let raw_${u}_${g} = lanes_sum(sum_${u}_${g});
#end
#end
#if HEAD_EACH
    // Each of the neighbours writes the score of one head.
#for u in KEYS
    var raw_${u} = raw_${u}_0;
#for g in G
    raw_${u} = select(raw_${u}, raw_${u}_${g}, part == ${g}u);
#end
    if (part < G && i_${u} < count) {
      weights[part * PITCH + i_${u}] = score(raw_${u}, slope, position - run.x - i_${u});
    }
#end
#else
#for u in KEYS
#for g in G
    if (part == ${g}u % LANES && i_${u} < count) {
      weights[${g}u * PITCH + i_${u}] = score(raw_${u}_${g}, slope_${g}, position - run.x - i_${u});
    }
#end
#end
#endif
  }
  workgroupBarrier();
  // LANES neighbours turn the scores of one head into weights.
  for (var first = 0u; first < G; first += KEYS_AT_ONCE) {
    let g = first + lane / LANES;
    let row = g * PITCH;
    let own = select(0u, count, g < G);
    var peak = -1e30;
    for (var i = part; i < own; i += LANES) { peak = max(peak, weights[row + i]); }
    peak = lanes_max(peak);
    var sum = 0.0;
    for (var i = part; i < own; i += LANES) {
      let w = exp(max(weights[row + i] - peak, -80.0));
      weights[row + i] = w;
      sum += w;
    }
    if (g < G) {
      for (var i = own + part; i < PITCH; i += LANES) { weights[row + i] = 0.0; }
    }
    sum = lanes_sum(sum);
    if (part == 0u && g < G) { write_weight(token, split, kv * G + g, peak, sum); }
  }
  workgroupBarrier();
  let c = lane % D4;
  let slot = lane / D4;
#for b in BATCHES
#for h in HEADS
  var out_${b}_${h} = vec4<f32>(0.0);
#end
#end
  // Invocations beyond the last whole set read with it, and their sums are not used.
  for (var start = 0u; start < count; start += SLOTS * VALUES) {
    let i = start + min(slot, SLOTS - 1u) * VALUES;
#for u in VALUES
    let value_${u} = value4((run_row(first_row, base, run.x, min(i + ${u}u, count - 1u)) * K + kv) * D4 + c);
#end
#for u in VALUES
#for b in BATCHES
#for h in HEADS
    out_${b}_${h} += weights[(${b}u * ${HEADS}u + ${h}u) * PITCH + i + ${u}u] * value_${u};
#end
#end
#end
  }
  // The sets' sums are added up for HEADS heads at a time.
#for b in BATCHES
#for h in HEADS
  parts[${h}u * ${THREADS}u + lane] = out_${b}_${h};
#end
  workgroupBarrier();
  for (var i = lane; i < ${HEADS}u * D4; i += ${THREADS}u) {
    let h = i / D4;
    var sum = vec4<f32>(0.0);
    for (var s = 0u; s < SLOTS; s++) { sum += parts[h * ${THREADS}u + s * D4 + i % D4]; }
    let to = part_of(token, split, kv * G + ${b}u * ${HEADS}u + h) + i % D4 * 4u;
    partial[to] = sum.x;
    partial[to + 1u] = sum.y;
    partial[to + 2u] = sum.z;
    partial[to + 3u] = sum.w;
  }
  workgroupBarrier();
#end
}
