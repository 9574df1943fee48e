// As linear/sweep.wgsl, with activations in int8, which are multiplied in pairs: the integer product
// (q0 + q1 2^16) (x1 + x0 2^16) has q0 x0 + q1 x1 in its upper half. With codes of -8 to 7 a whole block of 32 can be
// summed there. The sum of the lower halves is below 2^15 in magnitude, so it cannot carry into the upper half once
// 2^15 is added. A lane reads a quarter of each block's activations; the lanes swap these, and each lane takes the
// words of its weights in the same permuted order. Right shifts, which these devices execute lane by lane, are replaced
// by f32 additions: adding 1.5 2^k keeps the bits from 2^(k - 23) up.
@group(0) @binding(2) var<storage, read> x_codes: array<u32>; // [T, K / 4], in the order 2, 3, 0, 1 (quantize)
@group(0) @binding(3) var<storage, read> x_scales: array<vec4<f32>>; // [T, K / 32]

fn kept(w: vec4<u32>, mask: u32, magic: f32, bits: u32) -> vec4<u32> {
  return bitcast<vec4<u32>>(vec4<f32>(bitcast<vec4<i32>>(w & vec4<u32>(mask))) + vec4<f32>(magic)) - vec4<u32>(bits);
}

// Packs activations 0 and 2, and 1 and 3, of a word of each half of a block (low, high) as x1 + x0 2^16.
fn pairs(low: u32, high: u32) -> vec4<u32> {
  let w = vec2<u32>(low, high);
  let even = ((w ^ vec2<u32>(0x80808080u)) & vec2<u32>(0x00ff00ffu)) - vec2<u32>(0x00800080u);
  let upper = bitcast<vec2<i32>>((w ^ vec2<u32>(0x00008000u)) & vec2<u32>(0xff00ff00u));
  let odd = vec2<i32>(vec2<f32>(upper) * 0.00390625);
  let odd_pairs = bitcast<vec2<u32>>(odd) - vec2<u32>(0x80u);
  return vec4<u32>(even.x, odd_pairs.x, even.y, odd_pairs.y);
}

@compute @workgroup_size(4)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  BLOCKS = shape[5];
  EIGHTS = (shape[5] + 7u) / 8u;
  let blocks = shape[5];
  let rows = shape[0];
  let row_group = group.y * shape[3] + group.x;
  if (row_group * 4u * OWN >= rows) { return; }
  let row = row_group * 4u * OWN + lane * OWN;
  let first_token = group.z * TOKENS;
  let count = min(TOKENS, shape[4] - first_token);
  var sums: array<array<f32, 8>, TOKENS>;
  let lane_1 = lane ^ 1u;
  let lane_2 = lane ^ 2u;
  let lane_3 = lane ^ 3u;
  for (var block = 0u; block < blocks; block += 2u) {
#for j in 2
    let block_${j} = min(block + ${j}u, blocks - 1u);
    let weight_${j} = select(0.0, 0.0000152587890625, block + ${j}u < blocks);
#for r in 8
    let row_${r}_${j} = row + ${r}u % OWN + ${r}u / OWN * rows;
    let place_${r}_${j} = slot(row_${r}_${j}, block_${j}, 1u, 0u);
    let q_${r}_${j} = vec4<u32>(
        codes[place_${r}_${j}][lane], codes[place_${r}_${j}][lane_1],
        codes[place_${r}_${j}][lane_2], codes[place_${r}_${j}][lane_3]);
    let scales_${r}_${j} = scales32(row_${r}_${j}, block_${j});
    let scale_${r}_${j} = scales_${r}_${j}.x * weight_${j};
#if OFFSET
    let offset_${r}_${j} = (8.0 * scales_${r}_${j}.x - scales_${r}_${j}.y) * weight_${j} * 65536.0;
#endif
    let a_${r}_${j} = (q_${r}_${j} & vec4<u32>(0x000f000fu)) - vec4<u32>(0x00080008u);
    let b_${r}_${j} = kept(q_${r}_${j}, 0x00f000f0u, 134217728.0, 0x4d080008u);
    let c_${r}_${j} = kept(q_${r}_${j}, 0x0f000f00u, 2147483648.0, 0x4f080008u);
    let d_${r}_${j} = kept(q_${r}_${j} ^ vec4<u32>(0x80000000u), 0xf000f000u, 51539607552.0, 0x51400008u);
#end
#end
    for (var t = 0u; t < count; t++) {
      let token_block = (first_token + t) * blocks;
#for j in 2
      let x_scale_${j} = x_scales[token_block + block_${j}].x;
#if OFFSET
      let x_sum_${j} = x_scales[token_block + block_${j}].w;
#endif
      let x_at_${j} = (token_block + block_${j}) * 8u + lane;
      let x_${j}_0 = pairs(x_codes[x_at_${j}], x_codes[x_at_${j} + 4u]);
      let x_${j}_1 = quadSwapX(x_${j}_0);
#for r in 8
      let half_${r}_${j} = 0x8000u
          + a_${r}_${j}.x * x_${j}_0.x + c_${r}_${j}.x * x_${j}_0.y
          + b_${r}_${j}.x * x_${j}_0.z + d_${r}_${j}.x * x_${j}_0.w
          + a_${r}_${j}.y * x_${j}_1.x + c_${r}_${j}.y * x_${j}_1.y
          + b_${r}_${j}.y * x_${j}_1.z + d_${r}_${j}.y * x_${j}_1.w;
#end
      let x_${j}_2 = quadSwapY(x_${j}_0);
      let x_${j}_3 = quadSwapDiagonal(x_${j}_0);
#for r in 8
      let whole_${r}_${j} = half_${r}_${j}
          + a_${r}_${j}.z * x_${j}_2.x + c_${r}_${j}.z * x_${j}_2.y
          + b_${r}_${j}.z * x_${j}_2.z + d_${r}_${j}.z * x_${j}_2.w
          + a_${r}_${j}.w * x_${j}_3.x + c_${r}_${j}.w * x_${j}_3.y
          + b_${r}_${j}.w * x_${j}_3.z + d_${r}_${j}.w * x_${j}_3.w;
#if OFFSET
      let sum_${r}_${j} = scale_${r}_${j} * (x_scale_${j} * f32(bitcast<i32>(whole_${r}_${j} & 0xffff0000u)))
          + offset_${r}_${j} * x_sum_${j};
#else
      let sum_${r}_${j} = scale_${r}_${j} * (x_scale_${j} * f32(bitcast<i32>(whole_${r}_${j} & 0xffff0000u)));
#endif
#end
#end
#for r in 8
      sums[t][${r}] += sum_${r}_0 + sum_${r}_1;
#end
    }
  }
  for (var t = 0u; t < count; t++) {
    for (var r = 0u; r < OWN; r++) {
      if (row + r >= rows) { break; }
      store(first_token + t, row + r, sums[t][r], sums[t][(OWN + r) % 8u]);
    }
  }
}
