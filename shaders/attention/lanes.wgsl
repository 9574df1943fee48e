// Causal attention of many tokens for devices on which loads and barriers are expensive. One subgroup of LANES
// invocations, one query each, loops over the cached rows, four at a time; the subgroup reads each row once and
// broadcasts it. No workgroup memory is used. QUADS: the lanes of a subgroup of 4 swap vectors, because a swap
// is one instruction and a shuffle is many; each lane then holds the parts of its query and of its sum in a different
// order. Bindings and tiles are those of attention_tiles; a tile of TQ tokens has TQ / LANES workgroups.
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k_cache: array<${CACHE}>;
@group(0) @binding(2) var<storage, read> v_cache: array<${CACHE}>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> bases: array<u32>;
@group(0) @binding(5) var<storage, read> tiles: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<f32>>;

const H = ${H}u;
const K = ${K}u;
const D4 = ${d}u / 4u;
const LANES = ${LANES}u;
const PARTS = ${TQ}u / LANES;
const WINDOW = ${WINDOW}u; // 0: none

#if QUADS
fn passed_0(v: vec4<f32>) -> vec4<f32> { return v; }
fn passed_1(v: vec4<f32>) -> vec4<f32> { return quadSwapX(v); }
fn passed_2(v: vec4<f32>) -> vec4<f32> { return quadSwapY(v); }
fn passed_3(v: vec4<f32>) -> vec4<f32> { return quadSwapDiagonal(v); }
#else
#for l in LANES
fn passed_${l}(v: vec4<f32>) -> vec4<f32> { return subgroupShuffle(v, ${l}u); }
#end
#endif

@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let head = group.x;
  let kv = head / (H / K);
  let tile = tiles[group.y / PARTS];
  let offset = group.y % PARTS * LANES;
  if (tile.y <= offset) { return; }
  let count = min(tile.y - offset, LANES);
  let token = tile.x + offset + min(lane, count - 1u);
  let base = bases[tile.x];
  let first = positions[tile.x] + offset;
  let last = first + count - 1u;
  let position = first + min(lane, count - 1u);
  var begin = 0u;
  if (WINDOW > 0u && first + 1u > WINDOW) { begin = first + 1u - WINDOW; }
#for l in LANES
#if QUADS
  let part_${l} = (token * H + head) * D4 + (${l}u ^ lane);
#else
  let part_${l} = (token * H + head) * D4 + ${l}u;
#endif
#for h in HELD
  let q_${h}_${l} = q[part_${l} + ${h}u * LANES];
  var out_${h}_${l} = vec4<f32>(0.0);
#end
#end
  let slope = alibi_slope(head);
  var peak = -1e30;
  var total = 0.0;
  for (var start = begin; start <= last; start += 4u) {
#for j in 4
    var score_${j} = 0.0;
    {
      let row = (cache_row(base, min(start + ${j}u, last)) * K + kv) * D4;
#for h in HELD
      let held_${h} = key4(row + ${h}u * LANES + lane);
#for l in LANES
      score_${j} += dot(q_${h}_${l}, passed_${l}(held_${h}));
#end
#end
      var visible = start + ${j}u <= position;
      if (WINDOW > 0u) { visible = visible && start + ${j}u + WINDOW > position; }
      score_${j} = select(-1e30, score(score_${j}, slope, position - start - ${j}u), visible);
    }
#end
    let higher = max(max(max(score_0, score_1), max(score_2, score_3)), peak);
    let factor = exp(max(peak - higher, -80.0));
    peak = higher;
    total *= factor;
#for h in HELD
#for l in LANES
    out_${h}_${l} *= factor;
#end
#end
#for j in 4
    {
      let w = select(0.0, exp(max(score_${j} - higher, -80.0)), score_${j} > -1e29);
      total += w;
      let row = (cache_row(base, min(start + ${j}u, last)) * K + kv) * D4;
#for h in HELD
      let held_${h} = value4(row + ${h}u * LANES + lane);
#for l in LANES
      out_${h}_${l} += w * passed_${l}(held_${h});
#end
#end
    }
#end
  }
  if (lane < count) {
#for h in HELD
#for l in LANES
    y[part_${l} + ${h}u * LANES] = out_${h}_${l} / total;
#end
#end
  }
}
