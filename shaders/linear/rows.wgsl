// By rows (lib/linear_rows.wgsl): PARTS groups of LANES invocations share the blocks of K, and their sums are added at
// the end. Every invocation reads every input of its blocks. It loads the weights of AT_ONCE blocks before it uses the
// first, so that they are in flight together; blocks beyond the last are read as the last, with scales of zero.
const PARTS = ${PARTS}u;

#if SPLIT_K
var<workgroup> shared_sums: array<f32, ${SHARED_SUMS}>; // [sum, LANES * PARTS]
#endif
#if NORM
var<workgroup> shared_squares: array<f32, ${SHARED_SQUARES}>; // [TOKENS, LANES * PARTS]
#endif

// The factors of the weights k to k + 3: inputs, times gamma where there is a norm.
fn factors4(token: u32, k: u32) -> vec4<f32> {
#if NORM
  return inputs4(token, k) * gamma[k / 4u];
#else
  return inputs4(token, k);
#endif
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
  BLOCKS = shape[5];
  EIGHTS = (shape[5] + 7u) / 8u;
  let blocks = shape[5]; // uniform for the browser's compiler, unlike a private variable
  let rows = shape[0];
  let tokens = shape[4];
  let row_group = group.y * shape[3] + group.x;
  if (row_group * 32u >= rows) { return; }
  let lane = index % LANES;
  let part = index / LANES;
  let row = row_group * 32u + lane * OWN;
#for t in TOKENS
  let token_${t} = min(group.z * TOKENS + ${t}u, tokens - 1u);
  var squares_${t} = 0.0;
#for r in ROWS
  var sum_${r}_${t} = 0.0;
#end
#end
  for (var block = part; block < blocks; block += PARTS * ${AT_ONCE}u) {
#for b in AT_ONCE
#if SEVERAL
    let block_${b} = min(block + ${b}u * PARTS, blocks - 1u);
    let inside_${b} = f32(block + ${b}u * PARTS < blocks);
#else
    let block_${b} = block;
#endif
#for r in ROWS
    let weights_${b}_${r} = codes32(row + ${r}u % OWN + ${r}u / OWN * rows, block_${b});
    let scales_${b}_${r} = scales32(row + ${r}u % OWN + ${r}u / OWN * rows, block_${b});
#end
#if OWN_SQUARE
#for t in TOKENS
    let own_${b}_${t} = inputs4(token_${t}, block_${b} * 32u + lane / 4u * 4u)[lane % 4u];
#end
#endif
#end
#for b in AT_ONCE
#if OWN_SQUARE
#for t in TOKENS
#if SEVERAL
    squares_${t} += inside_${b} * own_${b}_${t} * own_${b}_${t};
#else
    squares_${t} += own_${b}_${t} * own_${b}_${t};
#endif
#end
#endif
#if LOOP_SQUARES
#for t in TOKENS
    for (var i = lane; i < 32u; i += LANES) {
      let own = inputs4(token_${t}, block_${b} * 32u + i / 4u * 4u)[i % 4u];
#if SEVERAL
      squares_${t} += inside_${b} * own * own;
#else
      squares_${t} += own * own;
#endif
    }
#end
#endif
#for r in ROWS
#if SEVERAL
    let factors_${b}_${r} = inside_${b} * scales_${b}_${r};
#else
    let factors_${b}_${r} = scales_${b}_${r};
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
        let v = factors4(token_${t}, block_${b} * 32u + ${i}u * 4u);
        let e = factors4(token_${t}, block_${b} * 32u + ${i}u * 4u + 16u);
#if OFFSET
        inputs_low += v.x + v.y + v.z + v.w;
        inputs_high += e.x + e.y + e.z + e.w;
#endif
#for r in ROWS
        low_${r} += dot(weights_${b}_${r}[${i}], v);
        high_${r} += dot(weights_${b}_${r}[${i} + 4], e);
#end
      }
#end
#for r in ROWS
#if OFFSET
      sum_${r}_${t} += factors_${b}_${r}.x * low_${r} + factors_${b}_${r}.z * high_${r}
          - factors_${b}_${r}.y * inputs_low - factors_${b}_${r}.w * inputs_high;
#else
      sum_${r}_${t} += factors_${b}_${r}.x * low_${r} + factors_${b}_${r}.z * high_${r};
#endif
#end
    }
#end
#end
  }
#if SPLIT_K
#for t in TOKENS
#for r in ROWS
  shared_sums[(${r}u * TOKENS + ${t}u) * LANES * PARTS + index] = sum_${r}_${t};
#end
#end
#endif
#if NORM
  // Sum over the parts first, then over the lanes; the lanes of the first part do both.
#for t in TOKENS
  shared_squares[${t}u * LANES * PARTS + index] = squares_${t};
#end
  workgroupBarrier();
  if (part == 0u) {
#for t in TOKENS
    for (var p = 1u; p < PARTS; p++) { squares_${t} += shared_squares[${t}u * LANES * PARTS + p * LANES + lane]; }
    shared_squares[${t}u * LANES * PARTS + lane] = squares_${t};
#end
  }
#endif
#if BARRIER
  workgroupBarrier();
#endif
  if (part != 0u) { return; }
#for t in TOKENS
  if (group.z * TOKENS + ${t}u < tokens) {
#if NORM
    var squares = 0.0;
    for (var l = 0u; l < LANES; l++) { squares += shared_squares[${t}u * LANES * PARTS + l]; }
    let scale = inverseSqrt(squares / f32(shape[6]) + ${EPS});
#endif
    var sums: array<f32, ${ROWS}>;
#for r in ROWS
#if SPLIT_K
    for (var p = 1u; p < PARTS; p++) {
      sum_${r}_${t} += shared_sums[(${r}u * TOKENS + ${t}u) * LANES * PARTS + p * LANES + lane];
    }
#endif
#if NORM
    sum_${r}_${t} *= scale;
#endif
    sums[${r}] = sum_${r}_${t};
#end
    store(token_${t}, row, sums);
  }
#end
}
