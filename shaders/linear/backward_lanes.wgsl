// For software devices: one block of 32 columns and TOKENS tokens per workgroup, which is one subgroup. 64 rows of W at
// a time are dequantized into workgroup memory, then held in named variables. A short loop over the tokens, whose sums
// are in workgroup memory, keeps the text small. An invocation computes OWN vectors of 4 columns; the subgroup reads
// the gradients of a token once and broadcasts them.
const TOKENS = ${TOKENS}u;
const LANES = ${LANES}u;

var<workgroup> tile_w: array<vec4<f32>, 512>; // [64 n, 8]
var<workgroup> sums: array<vec4<f32>, ${TOKENS_8}>; // [TOKENS, 8]

@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let token0 = group.y * TOKENS;
  let count = min(TOKENS, shape[3] - token0);
  for (var t = 0u; t < count; t++) {
#for o in OWN
    sums[t * 8u + ${o}u * LANES + lane] = vec4<f32>(0.0);
#end
  }
  for (var row0 = shape[4]; row0 < shape[0]; row0 += 64u) {
    workgroupBarrier();
    for (var i = lane; i < 64u; i += LANES) {
      let w = weights32(min(row0 + i, shape[0] - 1u), group.x);
      for (var j = 0u; j < 8u; j++) { tile_w[i * 8u + j] = w[j]; }
    }
    workgroupBarrier();
#for h in HELD
#for l in LANES
#for c in 4
#for o in OWN
    let w_${h}_${l}_${c}_${o} = tile_w[((${h}u * LANES + ${l}u) * 4u + ${c}u) * 8u + ${o}u * LANES + lane];
#end
#end
#end
#end
    for (var t = 0u; t < count; t++) {
#for h in HELD
      let held_${h} = gradients4(token0 + t, row0 + (${h}u * LANES + lane) * 4u);
#end
#for o in OWN
      var sum_${o} = sums[t * 8u + ${o}u * LANES + lane];
#end
#for h in HELD
#for l in LANES
      {
        let d = ${BROADCAST}(held_${h}, ${l}u);
#for o in OWN
        sum_${o} += d.x * w_${h}_${l}_0_${o} + d.y * w_${h}_${l}_1_${o} + d.z * w_${h}_${l}_2_${o}
            + d.w * w_${h}_${l}_3_${o};
#end
      }
#end
#end
#for o in OWN
      sums[t * 8u + ${o}u * LANES + lane] = sum_${o};
#end
    }
  }
  for (var t = 0u; t < count; t++) {
#for o in OWN
    store(token0 + t, group.x * 32u + (${o}u * LANES + lane) * 4u, sums[t * 8u + ${o}u * LANES + lane]);
#end
  }
}
