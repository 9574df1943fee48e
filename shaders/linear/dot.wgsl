// linear_tiles with int8 activations: codes of weights and activations are multiplied by packed dot products, and each
// block of 32 is scaled once. x_codes [T, K / 4], x_scales [T, K / 32] from quantize. The loads of a block are started
// before the products of the one before it, by different invocations for codes, scales and weights.
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
const THREADS = ${THREADS}u; // (TM / RM) * (TN / RN), at least 3 TM + TN
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
  // What this invocation loads of a block: 16 codes of a token, the scales of a token, or a row of weights.
  let loads_codes = lane < 2u * TM;
  let loads_scales = !loads_codes && lane < 3u * TM;
  let loads_row = lane >= THREADS - TN;
  let own = select((lane - 2u * TM) % TM, lane / 2u, loads_codes);
  let token = min(token0 + own, shape.w - 1u);
  let own_row = lane % TN;
  let row = min(row0 + own_row, shape.x - 1u);
  var first = vec4<u32>(0u);
  var second = vec4<u32>(0u);
  var scales = vec4<f32>(0.0);
  for (var step = 0u; step <= BLOCKS; step++) {
    if (step > 0u) {
      workgroupBarrier();
      if (loads_codes) { tile_x[own * STRIDE + lane % 2u] = first; }
      if (loads_scales) { tile_x_scales[own] = scales; }
      if (loads_row) {
        tile_w[own_row * STRIDE] = first;
        tile_w[own_row * STRIDE + 1u] = second;
        tile_w_scales[own_row] = scales;
      }
      workgroupBarrier();
    }
    if (step < BLOCKS) {
      if (loads_codes) { first = x_codes[(token * BLOCKS + step) * 2u + lane % 2u]; }
      if (loads_scales) { scales = x_scales[token * BLOCKS + step]; }
      if (loads_row) {
        let w = packed32(row, step);
        first = w[0];
        second = w[1];
        scales = scales32(row, step);
      }
    }
    if (step == 0u) { continue; }
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
