// What kernels share that look for the largest of a row's keys (lib/float_order.wgsl): one key and token of each
// invocation.
var<workgroup> keys: array<u32, THREADS>;
var<workgroup> ids: array<u32, THREADS>;
var<workgroup> shared_result: vec2<u32>;

// The largest key of all invocations, with the smallest id among equals, in every invocation.
fn best_of(key: u32, id: u32, lane: u32) -> vec2<u32> {
  keys[lane] = key;
  ids[lane] = id;
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      let other = lane + half;
      if (keys[other] > keys[lane] || (keys[other] == keys[lane] && ids[other] < ids[lane])) {
        keys[lane] = keys[other];
        ids[lane] = ids[other];
      }
    }
    workgroupBarrier();
  }
  if (lane == 0u) { shared_result = vec2<u32>(keys[0], ids[0]); }
  return workgroupUniformLoad(&shared_result);
}
