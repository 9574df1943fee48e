// Sums and maxima over the THREADS invocations of a workgroup; every invocation gets the result.
// With subgroups: one subgroup operation, then one value a subgroup through workgroup memory; without: a tree.

#if SUBGROUPS
#if !ONE_SUBGROUP
var<workgroup> reduce_scratch: array<f32, ${THREADS}>;
#endif
fn reduce_sum(value: f32, lane: u32, subgroup_lane: u32, subgroup: u32, subgroups: u32) -> f32 {
  let part = subgroupAdd(value);
#if ONE_SUBGROUP
  return part;
#else
  if (subgroup_lane == 0u) { reduce_scratch[subgroup] = part; }
  workgroupBarrier();
  var total = 0.0;
  for (var i = 0u; i < subgroups; i++) { total += reduce_scratch[i]; }
  workgroupBarrier();
  return total;
#endif
}
fn reduce_max(value: f32, lane: u32, subgroup_lane: u32, subgroup: u32, subgroups: u32) -> f32 {
  let part = subgroupMax(value);
#if ONE_SUBGROUP
  return part;
#else
  if (subgroup_lane == 0u) { reduce_scratch[subgroup] = part; }
  workgroupBarrier();
  var total = reduce_scratch[0];
  for (var i = 1u; i < subgroups; i++) { total = max(total, reduce_scratch[i]); }
  workgroupBarrier();
  return total;
#endif
}
#else
var<workgroup> reduce_scratch: array<f32, ${THREADS}>;
fn reduce_sum(value: f32, lane: u32, subgroup_lane: u32, subgroup: u32, subgroups: u32) -> f32 {
  reduce_scratch[lane] = value;
  workgroupBarrier();
  for (var step = ${THREADS}u / 2u; step > 0u; step /= 2u) {
    if (lane < step) { reduce_scratch[lane] += reduce_scratch[lane + step]; }
    workgroupBarrier();
  }
  let total = reduce_scratch[0];
  workgroupBarrier();
  return total;
}
fn reduce_max(value: f32, lane: u32, subgroup_lane: u32, subgroup: u32, subgroups: u32) -> f32 {
  reduce_scratch[lane] = value;
  workgroupBarrier();
  for (var step = ${THREADS}u / 2u; step > 0u; step /= 2u) {
    if (lane < step) { reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + step]); }
    workgroupBarrier();
  }
  let total = reduce_scratch[0];
  workgroupBarrier();
  return total;
}
#endif
