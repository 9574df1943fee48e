// By rows (lib/linear_rows.wgsl), for software devices: the workgroup is one subgroup of LANES invocations. It reads
// each input once and broadcasts it, instead of every invocation reading every input.
//
// SPREAD_CODES: codes are multiplied by 256^j (lib/spread.wgsl), and the inputs are divided by it.
#if NORM
var<workgroup> shared_squares: array<f32, ${SHARED_SQUARES}>; // [TOKENS, LANES]
#endif

@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  BLOCKS = shape[5];
  EIGHTS = (shape[5] + 7u) / 8u;
  let blocks = shape[5]; // uniform for the browser's compiler, unlike a private variable
  let rows = shape[0];
  let tokens = shape[4];
  let row_group = group.y * shape[3] + group.x;
  if (row_group * 32u >= rows) { return; }
  let row = row_group * 32u + lane * OWN;
#for t in TOKENS
  let token_${t} = min(group.z * TOKENS + ${t}u, tokens - 1u);
  var squares_${t} = 0.0;
#for r in ROWS
  var sum_${r}_${t} = 0.0;
#end
#end
#if SHARED_SCALES
  // Scales that 8 blocks share are loaded once for all of them.
  for (var first = 0u; first < blocks; first += 8u) {
#for r in ROWS
  let shared_${r} = eight(row + ${r}u % OWN + ${r}u / OWN * rows, first);
#end
  for (var block = first; block < min(first + 8u, blocks); block++) {
#else
  for (var block = 0u; block < blocks; block++) {
#endif
#for t in TOKENS
    var held_${t}: array<vec4<f32>, ${HELD}>;
#for h in HELD
    held_${t}[${h}] = inputs4(token_${t}, block * 32u + (${h}u * LANES + lane) * 4u);
#if NORM
    squares_${t} += dot(held_${t}[${h}], held_${t}[${h}]);
    held_${t}[${h}] *= gamma[block * 8u + ${h}u * LANES + lane];
#endif
#if SPREAD_CODES
    held_${t}[${h}] *= 1.0 / SPREAD;
#endif
#end
#end
#for r in ROWS
    let weights_${r} = codes32(row + ${r}u % OWN + ${r}u / OWN * rows, block);
#if SHARED_SCALES
    let scales_${r} = scales_in(shared_${r}, block);
#else
    let scales_${r} = scales32(row + ${r}u % OWN + ${r}u / OWN * rows, block);
#endif
#end
#for t in TOKENS
    {
      var inputs_low = 0.0;
      var inputs_high = 0.0;
#for r in ROWS
      var low_${r} = 0.0;
      var high_${r} = 0.0;
#end
#for i in 4
      {
        let v = ${BROADCAST}(held_${t}[${i}u / LANES], ${i}u % LANES);
        let e = ${BROADCAST}(held_${t}[(${i}u + 4u) / LANES], (${i}u + 4u) % LANES);
#if SPREAD_CODES
        inputs_low += dot(v, SPREAD);
        inputs_high += dot(e, SPREAD);
#endif
#for r in ROWS
        low_${r} += dot(weights_${r}[${i}], v);
        high_${r} += dot(weights_${r}[${i} + 4], e);
#end
      }
#end
#for r in ROWS
#if SPREAD_CODES
      sum_${r}_${t} += scales_${r}.x * low_${r} + scales_${r}.z * high_${r}
          - scales_${r}.y * inputs_low - scales_${r}.w * inputs_high;
#else
      sum_${r}_${t} += scales_${r}.x * low_${r} + scales_${r}.z * high_${r};
#endif
#end
    }
#end
  }
#if SHARED_SCALES
  }
#endif
#if NORM
#for t in TOKENS
  shared_squares[${t}u * LANES + lane] = squares_${t};
#end
  workgroupBarrier();
#endif
#for t in TOKENS
  if (group.z * TOKENS + ${t}u < tokens) {
#if NORM
    var squares = 0.0;
    for (var l = 0u; l < LANES; l++) { squares += shared_squares[${t}u * LANES + l]; }
    let scale = inverseSqrt(squares / f32(shape[6]) + ${EPS});
#endif
    var sums: array<f32, ${ROWS}>;
#for r in ROWS
#if NORM
    sum_${r}_${t} *= scale;
#endif
    sums[${r}] = sum_${r}_${t};
#end
    store(token_${t}, row, sums);
  }
#end
}
