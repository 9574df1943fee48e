// linear_tiles with int8 activations: codes of weights and activations are multiplied by packed dot products, and each
// block of 32 is scaled once. x_codes [T, K / 4], x_scales [T, K / 32] from quantize. All loads of a block are started
// together, before the products of the one before it. All invocations load, also what others load too, because a
// compiler waits for loads at the end of a branch.
@group(0) @binding(0) var<storage, read> x_codes: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> x_scales: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> shape: vec4<u32>; // rows of this shard, first row, rows of the matrix, tokens
#if BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;
#endif
#if RESIDUAL
@group(0) @binding(5) var<storage, read> residual: array<f32>;
#endif

const TM = ${TM}u;
const TN = ${TN}u;
const RM = ${RM}u;
const RN = ${RN}u;
const THREADS = ${THREADS}u; // (TM / RM) * (TN / RN), at least 2 TM and TN
// Two vectors of 16 codes and one of padding, so that rows start in different memory banks.
const STRIDE = 3u;

var<workgroup> tile_x: array<vec4<u32>, ${TM_3}>;
var<workgroup> tile_w: array<vec4<u32>, ${TN_3}>;
var<workgroup> tile_x_scales: array<vec4<f32>, ${TM}>;
var<workgroup> tile_w_scales: array<vec4<f32>, ${TN}>;

fn dot16(a: vec4<u32>, b: vec4<u32>) -> f32 {
  return f32(dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w));
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let token0 = group.y * TM;
  let row0 = group.x * TN;
  let tm = lane / (TN / RN);
  let tn = lane % (TN / RN);
#for m in RM
#for n in RN
  var sum_${m}_${n} = 0.0;
#end
#end
  let codes_at = min(token0 + lane / 2u % TM, shape.w - 1u) * BLOCKS;
  let scales_at = min(token0 + lane % TM, shape.w - 1u) * BLOCKS;
  let own_row = min(row0 + lane % TN, shape.x - 1u);
  var own_codes = x_codes[codes_at * 2u + lane % 2u];
  var own_scales = x_scales[scales_at];
  var row_codes = packed32(own_row, 0u);
  var row_scales = scales32(own_row, 0u);
  for (var block = 0u; block < BLOCKS; block++) {
    workgroupBarrier();
    if (lane < 2u * TM) { tile_x[lane / 2u * STRIDE + lane % 2u] = own_codes; }
    if (lane < TM) { tile_x_scales[lane] = own_scales; }
    if (lane < TN) {
      tile_w[lane * STRIDE] = row_codes[0];
      tile_w[lane * STRIDE + 1u] = row_codes[1];
      tile_w_scales[lane] = row_scales;
    }
    workgroupBarrier();
    let next = min(block + 1u, BLOCKS - 1u);
    own_codes = x_codes[(codes_at + next) * 2u + lane % 2u];
    own_scales = x_scales[scales_at + next];
    row_codes = packed32(own_row, next);
    row_scales = scales32(own_row, next);
#for n in RN
    let low_${n} = tile_w[(tn + ${n}u * (TN / RN)) * STRIDE];
    let high_${n} = tile_w[(tn + ${n}u * (TN / RN)) * STRIDE + 1u];
    let s_${n} = tile_w_scales[tn + ${n}u * (TN / RN)];
#end
#for m in RM
    {
      let x_low = tile_x[(tm * RM + ${m}u) * STRIDE];
      let x_high = tile_x[(tm * RM + ${m}u) * STRIDE + 1u];
      let t = tile_x_scales[tm * RM + ${m}u];
#for n in RN
      sum_${m}_${n} += t.x * (s_${n}.x * dot16(low_${n}, x_low) + s_${n}.z * dot16(high_${n}, x_high))
          - s_${n}.y * t.y - s_${n}.w * t.z;
#end
    }
#end
  }
#for m in RM
  if (token0 + tm * RM + ${m}u < shape.w) {
    let at = (token0 + tm * RM + ${m}u) * shape.z + shape.y;
#for n in RN
    {
      let row = row0 + tn + ${n}u * (TN / RN);
      if (row < shape.x) {
        var total = sum_${m}_${n};
#if BIAS
        total += bias[shape.y + row];
#endif
#if RESIDUAL
        total += residual[at + row];
#endif
        y[at + row] = total;
      }
    }
#end
  }
#end
}
