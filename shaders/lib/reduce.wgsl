// Sums and maxima over the THREADS invocations of a workgroup; every invocation gets the result. With subgroups: one
// subgroup operation, then one value per subgroup through workgroup memory. Without: a tree.

// The indices of an invocation: the last parameter of a kernel that reduces.
struct Invocation {
  @builtin(local_invocation_index) lane: u32,
#if SUBGROUPS
  @builtin(subgroup_invocation_id) subgroup_lane: u32,
  @builtin(subgroup_id) subgroup: u32,
  @builtin(num_subgroups) subgroups: u32,
#endif
}

#if SUBGROUPS
#if !ONE_SUBGROUP
var<workgroup> reduce_scratch: array<f32, ${THREADS}>;
#endif
fn reduce_sum(value: f32, me: Invocation) -> f32 {
  let part = subgroupAdd(value);
#if ONE_SUBGROUP
  return part;
#else
  if (me.subgroup_lane == 0u) { reduce_scratch[me.subgroup] = part; }
  workgroupBarrier();
  var total = 0.0;
  for (var i = 0u; i < me.subgroups; i++) { total += reduce_scratch[i]; }
  workgroupBarrier();
  return total;
#endif
}
fn reduce_max(value: f32, me: Invocation) -> f32 {
  let part = subgroupMax(value);
#if ONE_SUBGROUP
  return part;
#else
  if (me.subgroup_lane == 0u) { reduce_scratch[me.subgroup] = part; }
  workgroupBarrier();
  var total = reduce_scratch[0];
  for (var i = 1u; i < me.subgroups; i++) { total = max(total, reduce_scratch[i]); }
  workgroupBarrier();
  return total;
#endif
}
#else
var<workgroup> reduce_scratch: array<f32, ${THREADS}>;
fn reduce_sum(value: f32, me: Invocation) -> f32 {
  reduce_scratch[me.lane] = value;
  workgroupBarrier();
  for (var step = ${THREADS}u / 2u; step > 0u; step /= 2u) {
    if (me.lane < step) { reduce_scratch[me.lane] += reduce_scratch[me.lane + step]; }
    workgroupBarrier();
  }
  let total = reduce_scratch[0];
  workgroupBarrier();
  return total;
}
fn reduce_max(value: f32, me: Invocation) -> f32 {
  reduce_scratch[me.lane] = value;
  workgroupBarrier();
  for (var step = ${THREADS}u / 2u; step > 0u; step /= 2u) {
    if (me.lane < step) { reduce_scratch[me.lane] = max(reduce_scratch[me.lane], reduce_scratch[me.lane + step]); }
    workgroupBarrier();
  }
  let total = reduce_scratch[0];
  workgroupBarrier();
  return total;
}
#endif
