// c[m, n] (+)= ALPHA Σ_k a[m, k] b[k, n], matrices given by strides; with SPLIT, part z of the sum goes to c[z, m, n] instead.
// A tile of TM x TN results a workgroup, 16 of k at a time in workgroup memory, RM x RN results in registers.
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@group(0) @binding(3) var<storage, read> size: array<u32>; // M, N, K, K of one split; offset, row and column stride of a, b, c; splits

const TM = ${TM}u;
const TN = ${TN}u;
const TK = 16u;
const RM = ${RM}u;
const RN = ${RN}u;
const THREADS = ${THREADS}u;

var<workgroup> tile_a: array<f32, ${TM_TK}>; // [TK, TM]
var<workgroup> tile_b: array<f32, ${TN_TK}>; // [TK, TN]

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let m0 = group.y * TM;
  let n0 = group.x * TN;
  let end = min((group.z + 1u) * size[3], size[2]);
  let tm = lane / (TN / RN) * RM;
  let tn = lane % (TN / RN) * RN;
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
      tile_a[k * TM + m] = value;
    }
    for (var i = lane; i < TN * TK; i += THREADS) {
#if B_ALONG_K
      let k = i % TK; let n = i / TK;
#else
      let k = i / TN; let n = i % TN;
#endif
      var value = 0.0;
      if (n0 + n < size[1] && start + k < end) { value = b[size[7] + (start + k) * size[8] + (n0 + n) * size[9]]; }
      tile_b[k * TN + n] = value;
    }
    workgroupBarrier();
    for (var k = 0u; k < TK; k++) {
      var right: array<f32, ${RN}>;
      for (var n = 0u; n < RN; n++) { right[n] = tile_b[k * TN + tn + n]; }
      for (var m = 0u; m < RM; m++) {
        let left = tile_a[k * TM + tm + m];
        for (var n = 0u; n < RN; n++) { sums[m * RN + n] += left * right[n]; }
      }
    }
  }
  for (var i = 0u; i < RM * RN; i++) {
    let m = m0 + tm + i / RN;
    let n = n0 + tn + i % RN;
    if (m < size[0] && n < size[1]) {
#if SPLIT
      c[(group.z * size[0] + m) * size[1] + n] = sums[i];
#else
      let at = size[10] + m * size[11] + n * size[12];
#if ADD
      c[at] += ${ALPHA} * sums[i];
#else
      c[at] = ${ALPHA} * sums[i];
#endif
#endif
    }
  }
}
