// y[t, n] = Σ_k W[n, k] x[t, k] (+ bias[n]) (+ residual[t, n])      For many tokens: a tile of TM tokens and TN rows
// per workgroup, with one block of 32 of K at a time in workgroup memory, and RM x RN results in registers.
@group(0) @binding(0) var<storage, read> x: array<${XVEC}>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> shape: vec4<u32>; // rows of this shard, first row, rows of the matrix, tokens
#if BIAS
@group(0) @binding(3) var<storage, read> bias: array<f32>;
#endif
#if RESIDUAL
@group(0) @binding(4) var<storage, read> residual: array<f32>;
#endif

const K = ${K}u;
const TM = ${TM}u;
const TN = ${TN}u;
const RM = ${RM}u;
const RN = ${RN}u;
const THREADS = ${THREADS}u; // (TM / RM) * (TN / RN)
// Row stride of a tile: 8 vectors and one of padding, so that rows start in different memory banks.
const STRIDE = 9u;

#if HALF_TILES
alias tile = vec4<f16>;
#else
alias tile = vec4<f32>;
#endif
var<workgroup> tile_x: array<tile, ${TM_9}>;
var<workgroup> tile_w: array<tile, ${TN_9}>;

fn inputs4(token: u32, at: u32) -> vec4<f32> {
#if RAGGED
  var v = vec4<f32>(0.0);
  for (var j = 0u; j < 4u; j++) {
    if (at + j < K) { v[j] = x[token * K + at + j]; }
  }
  return v;
#else
  return x[(token * K + at) / 4u];
#endif
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let token0 = group.y * TM;
  let row0 = group.x * TN;
  let tm = lane / (TN / RN);
  let tn = lane % (TN / RN);
  var sums: array<f32, ${RM_RN}>;
  for (var block = 0u; block < BLOCKS; block++) {
    workgroupBarrier();
    for (var i = lane; i < TM * 8u; i += THREADS) {
      let inputs = inputs4(min(token0 + i / 8u, shape.w - 1u), block * 32u + (i % 8u) * 4u);
      tile_x[(i / 8u) * STRIDE + i % 8u] = tile(inputs);
    }
    for (var i = lane; i < TN; i += THREADS) {
      let w = weights32(min(row0 + i, shape.x - 1u), block);
      for (var j = 0u; j < 8u; j++) { tile_w[i * STRIDE + j] = tile(w[j]); }
    }
    workgroupBarrier();
    for (var j = 0u; j < 8u; j++) {
#for n in RN
      let w_${n} = vec4<f32>(tile_w[(tn + ${n}u * (TN / RN)) * STRIDE + j]);
#end
#for m in RM
      {
        let v = vec4<f32>(tile_x[(tm * RM + ${m}u) * STRIDE + j]);
#for n in RN
        sums[${m}u * RN + ${n}u] += dot(v, w_${n});
#end
      }
#end
    }
  }
  for (var m = 0u; m < RM; m++) {
    let token = token0 + tm * RM + m;
    for (var n = 0u; n < RN; n++) {
      let local = row0 + tn + n * (TN / RN);
      if (token < shape.w && local < shape.x) {
        let row = shape.y + local;
        var total = sums[m * RN + n];
#if BIAS
        total += bias[row];
#endif
#if RESIDUAL
        total += residual[token * shape.z + row];
#endif
        y[token * shape.z + row] = total;
      }
    }
  }
}
