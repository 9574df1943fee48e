// Causal attention of many tokens for devices that pay for loads and barriers: one subgroup of LANES invocations, one query each, walks
// over the cached rows, four at a time; each row is read once by the subgroup and passed around by shuffles. No workgroup memory.
// Bindings and tiles as attention_tile; a tile of TQ tokens takes TQ / LANES workgroups.
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
#for i in D4
  let q_${i} = q[(token * H + head) * D4 + ${i}u];
  var out_${i} = vec4<f32>(0.0);
#end
  let slope = alibi_slope(head);
  var peak = -1e30;
  var total = 0.0;
  for (var start = begin; start <= last; start += 4u) {
#for j in 4
    var score_${j} = 0.0;
    {
      let row = (cache_row(base, min(start + ${j}u, last)) * K + kv) * D4;
      var held: array<vec4<f32>, ${HELD}>;
#for h in HELD
      held[${h}] = key4(row + ${h}u * LANES + lane);
#end
#for i in D4
      score_${j} += dot(q_${i}, subgroupShuffle(held[${i}u / LANES], ${i}u % LANES));
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
#for i in D4
    out_${i} *= factor;
#end
#for j in 4
    {
      let w = select(0.0, exp(max(score_${j} - higher, -80.0)), score_${j} > -1e29);
      total += w;
      let row = (cache_row(base, min(start + ${j}u, last)) * K + kv) * D4;
      var held: array<vec4<f32>, ${HELD}>;
#for h in HELD
      held[${h}] = value4(row + ${h}u * LANES + lane);
#end
#for i in D4
      out_${i} += w * subgroupShuffle(held[${i}u / LANES], ${i}u % LANES);
#end
    }
#end
  }
  if (lane < count) {
#for i in D4
    y[(token * H + head) * D4 + ${i}u] = out_${i} / total;
#end
  }
}
