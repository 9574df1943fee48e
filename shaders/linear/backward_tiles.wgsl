// A tile of TM tokens and 64 columns (two blocks) per workgroup. 32 rows of W at a time are dequantized into workgroup
// memory and read along n. HALF_TILES: tiles in f16, sums in f32. A gradient that f16 cannot represent makes its sums
// NaN, so that the optimizer detects it on every device, however the device converts such values.
const TM = ${TM}u;
const RM = ${RM}u;
const STRIDE = ${STRIDE}u;
const THREADS = ${THREADS}u; // TM / RM * 16

#if HALF_TILES
alias tile = vec4<f16>;
fn gradient(v: vec4<f32>) -> tile {
  return tile(select(v, vec4<f32>(bitcast<f32>(shape[3] | 0x7fc00000u)), abs(v) > vec4<f32>(65504.0)));
}
#else
alias tile = vec4<f32>;
fn gradient(v: vec4<f32>) -> tile { return v; }
#endif
var<workgroup> tile_dy: array<tile, ${TM_8}>; // [TM, 32 n]
var<workgroup> tile_w: array<tile, ${TILE_W}>; // [32 n, 64 k]

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let token0 = group.y * TM;
  let column = lane % 16u;
  let first = lane / 16u * RM;
#for m in RM
  var sum_${m} = vec4<f32>(0.0);
#end
  for (var row0 = shape[4]; row0 < shape[0]; row0 += 32u) {
    workgroupBarrier();
    for (var i = lane; i < 64u; i += THREADS) {
      let w = weights32(min(row0 + i % 32u, shape[0] - 1u), min(group.x * 2u + i / 32u, BLOCKS - 1u));
      for (var j = 0u; j < 8u; j++) { tile_w[(i % 32u) * STRIDE + i / 32u * 8u + j] = tile(w[j]); }
    }
    for (var i = lane; i < TM * 8u; i += THREADS) {
      tile_dy[i] = gradient(gradients4(min(token0 + i / 8u, shape[3] - 1u), row0 + i % 8u * 4u));
    }
    workgroupBarrier();
    for (var j = 0u; j < 8u; j++) {
      let at = j * 4u * STRIDE + column;
      let w0 = vec4<f32>(tile_w[at]);
      let w1 = vec4<f32>(tile_w[at + STRIDE]);
      let w2 = vec4<f32>(tile_w[at + 2u * STRIDE]);
      let w3 = vec4<f32>(tile_w[at + 3u * STRIDE]);
#for m in RM
      {
        let d = vec4<f32>(tile_dy[(first + ${m}u) * 8u + j]);
        sum_${m} += d.x * w0 + d.y * w1 + d.z * w2 + d.w * w3;
      }
#end
    }
  }
  let k = group.x * 64u + column * 4u;
#for m in RM
  if (token0 + first + ${m}u < shape[3]) { store(token0 + first + ${m}u, k, sum_${m}); }
#end
}
