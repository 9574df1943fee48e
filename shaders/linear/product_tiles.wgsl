// A tile of TM x TN results per workgroup, with 16 of k at a time in workgroup memory and RM x RN results in registers.
// HALF_TILES: tiles in f16, sums in f32; values that f16 cannot represent make their sums NaN, as in
// linear/backward_tiles.wgsl.
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;

const RM = ${RM}u;
const RN = ${RN}u;
const THREADS = ${THREADS}u;
const TM = ${TM}u;
const TN = ${TN}u;
const TK = 16u;

#if HALF_TILES
alias cell = f16;
fn factor(v: f32) -> cell { return cell(select(v, bitcast<f32>(size[0] | 0x7fc00000u), abs(v) > 65504.0)); }
#else
alias cell = f32;
fn factor(v: f32) -> cell { return v; }
#endif
var<workgroup> tile_a: array<cell, ${TM_TK}>; // [TK, TM]
var<workgroup> tile_b: array<cell, ${TN_TK}>; // [TK, TN]

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let m0 = group.y * TM;
  let n0 = group.x * TN;
  let end = min((group.z + 1u) * size[3], size[2]);
  let tm = lane / (TN / RN) * RM;
  let tn = lane % (TN / RN) * RN;
  let row = m0 + tm;
  let column = n0 + tn;
  var sums: array<f32, ${RM_RN}>;
  for (var start = group.z * size[3]; start < end; start += TK) {
    workgroupBarrier();
    for (var i = lane; i < TM * TK; i += THREADS) {
#if A_ALONG_K
      let k = i % TK; let m = i / TK;
#else
      let k = i / TM; let m = i % TM;
#endif
      var value = 0.0;
      if (m0 + m < size[0] && start + k < end) { value = a[size[4] + (m0 + m) * size[5] + (start + k) * size[6]]; }
      tile_a[k * TM + m] = factor(value);
    }
    for (var i = lane; i < TN * TK; i += THREADS) {
#if B_ALONG_K
      let k = i % TK; let n = i / TK;
#else
      let k = i / TN; let n = i % TN;
#endif
      var value = 0.0;
      if (n0 + n < size[1] && start + k < end) { value = b[size[7] + (start + k) * size[8] + (n0 + n) * size[9]]; }
      tile_b[k * TN + n] = factor(value);
    }
    workgroupBarrier();
    for (var k = 0u; k < TK; k++) {
#for n in RN
      let right_${n} = f32(tile_b[k * TN + tn + ${n}u]);
#end
#for m in RM
      {
        let left = f32(tile_a[k * TM + tm + ${m}u]);
#for n in RN
        sums[${m}u * RN + ${n}u] += left * right_${n};
#end
      }
#end
    }
  }
  for (var i = 0u; i < RM * RN; i++) { store(row + i / RN, column + i % RN, group.z, sums[i]); }
}
