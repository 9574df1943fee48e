// A tile of TM tokens and TN results per workgroup, by cooperative matrices of SIZE x SIZE: f16 factors, f32 sums. Each
// of PARTS subgroups computes FM x FN matrices. One step is 32 of the inner size: all invocations unpack its weights
// into workgroup memory once. Workgroup memory holds two steps, so that one barrier a step is enough, and the loads of
// a step are started before the products of the one before it.
//
// x is the output of to_f16 in its padded form: rows of 16 words for each 32 values, then 4 words, the last of which is
// the power of two by which the row is multiplied. The kernel defines `first_step`, `last_step`, `x_offset` (vectors of
// a row of x before its first step), `stored` (the i-th block of 32 weights of a step, packed), `weights_at` (its
// place) and `finish` (what becomes of a sum). INNER_ROWS: tiles of weights have a row for each of the inner size (dy
// W); otherwise a row for each result (x Wᵀ).
const SIZE = ${SIZE}u;
const FM = ${FM}u;
const FN = ${FN}u;
const PN = ${PN}u;
const PARTS = ${PARTS}u;
const TM = ${TM}u;
const TN = ${TN}u;
const THREADS = ${THREADS}u;
// Row strides in values: rows start in different memory banks, and at multiples of 16 bytes.
const X_PITCH = 40u;
const W_PITCH = ${W_PITCH}u;
const STEP_VALUES = ${STEP_VALUES}u; // TM * X_PITCH and the tile of weights

alias factor_x = coop_mat${SIZE}x${SIZE}<f16, A>;
alias factor_w = coop_mat${SIZE}x${SIZE}<f16, B>;
alias sums = coop_mat${SIZE}x${SIZE}<f32, C>;

var<workgroup> tiles: array<f16, ${STEP_VALUES_2}>;
var<workgroup> results: array<f32, ${RESULTS}>; // one matrix for each subgroup

struct Subgroup {
  @builtin(subgroup_id) own: u32,
  @builtin(num_subgroups) count: u32,
}

fn put4(at: u32, v: vec4<f16>) {
  tiles[at] = v.x;
  tiles[at + 1u] = v.y;
  tiles[at + 2u] = v.z;
  tiles[at + 3u] = v.w;
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32, me: Subgroup) {
  let token0 = group.y * TM;
  let begin = first_step();
  let end = last_step();
#for i in X_LOADS
  let x_at_${i} = min(token0 + (lane + ${i}u * THREADS) / 8u, shape[3] - 1u) * X_STRIDE + x_offset() + lane % 8u;
#end
  // One pass where subgroups have the size for which the kernel was made. Where the driver chose larger ones, there are
  // fewer of them, and each computes several parts; where it chose smaller ones, some compute the last part again.
  let slots = min(me.count, PARTS);
  let slot = min(me.own, PARTS - 1u);
  for (var first = 0u; first < PARTS; first += slots) {
    let own_part = min(first + slot, PARTS - 1u);
    let part_m = own_part / PN * FM * SIZE;
    let part_n = own_part % PN * FN * SIZE;
#for m in FM
#for n in FN
    var sum_${m}_${n} = sums();
#end
#end
#for i in X_LOADS
    var x_${i} = x[x_at_${i} + begin * 8u];
#end
#for i in W_LOADS
    var w_${i} = stored(group.x, lane + ${i}u * THREADS, begin);
#end
    {
      let tile = (begin & 1u) * STEP_VALUES;
#for i in X_LOADS
      put4(tile + (lane + ${i}u * THREADS) / 8u * X_PITCH + lane % 8u * 4u, x_${i});
#end
#for i in W_LOADS
      {
        let at = tile + TM * X_PITCH + weights_at(lane + ${i}u * THREADS);
        let w = unpack32(w_${i});
#for j in 8
        put4(at + ${j}u * 4u, vec4<f16>(w[${j}]));
#end
      }
#end
    }
    workgroupBarrier();
    for (var step = begin; step < end; step++) {
      // The last step loads once more what it has. Values are stored in the block in which they are loaded, because
      // compilers move loads to where the values are used.
      let next = min(step + 1u, end - 1u);
#for i in X_LOADS
      x_${i} = x[x_at_${i} + next * 8u];
#end
#for i in W_LOADS
      w_${i} = stored(group.x, lane + ${i}u * THREADS, next);
#end
      let tile = (step & 1u) * STEP_VALUES;
#for k in INNER
#for m in FM
      let a_${m}_${k}_at = tile + (part_m + ${m}u * SIZE) * X_PITCH + ${k}u * SIZE;
      let a_${m}_${k} = coopLoadT<factor_x>(&tiles[a_${m}_${k}_at], X_PITCH);
#end
#for n in FN
      {
#if INNER_ROWS
        let at = tile + TM * X_PITCH + ${k}u * SIZE * W_PITCH + part_n + ${n}u * SIZE;
        let b = coopLoadT<factor_w>(&tiles[at], W_PITCH);
#else
        let at = tile + TM * X_PITCH + (part_n + ${n}u * SIZE) * W_PITCH + ${k}u * SIZE;
        let b = coopLoad<factor_w>(&tiles[at], W_PITCH);
#endif
#for m in FM
        sum_${m}_${n} = coopMultiplyAdd(a_${m}_${k}, b, sum_${m}_${n});
#end
      }
#end
#end
      let other = ((step + 1u) & 1u) * STEP_VALUES;
#for i in X_LOADS
      put4(other + (lane + ${i}u * THREADS) / 8u * X_PITCH + lane % 8u * 4u, x_${i});
#end
#for i in W_LOADS
      {
        let at = other + TM * X_PITCH + weights_at(lane + ${i}u * THREADS);
        let w = unpack32(w_${i});
#for j in 8
        put4(at + ${j}u * 4u, vec4<f16>(w[${j}]));
#end
      }
#end
      workgroupBarrier();
    }
#for m in FM
#for n in FN
    {
      workgroupBarrier();
      let own_at = slot * SIZE * SIZE;
      coopStoreT(sum_${m}_${n}, &results[own_at], SIZE);
      workgroupBarrier();
      for (var i = lane; i < slots * SIZE * SIZE; i += THREADS) {
        let part = first + i / (SIZE * SIZE);
        let token = token0 + (part / PN * FM + ${m}u) * SIZE + i / SIZE % SIZE;
        let result = group.x * TN + (part % PN * FN + ${n}u) * SIZE + i % SIZE;
        if (part < PARTS && token < shape[3]) {
          finish(token, result, results[i] * powers[(token + 1u) * X_STRIDE * 2u - 1u]);
        }
      }
    }
#end
#end
  }
}
