// Second pass, one query per invocation of a subgroup: dq[t] = Σ_p ds[t, p] k[p] with ds = w (dy·v - Σ dy∘y) score'.
@group(0) @binding(5) var<storage, read> statistics: array<vec4<f32>>; // [T, H]
@group(0) @binding(6) var<storage, read_write> dq: array<vec4<f32>>;

@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let head = group.x;
  let kv = head / (H / K);
  let tile = tiles[group.y / PARTS];
  let offset = group.y % PARTS * LANES;
  if (tile.y <= offset) { return; }
  let count = min(tile.y - offset, LANES);
  let at = (tile.x + offset + min(lane, count - 1u)) * H + head;
  let known = statistics[at];
  let base = u32(known.z);
  let position = u32(known.w);
  let first = u32(statistics[(tile.x + offset) * H + head].w);
  let last = first + count - 1u;
  var begin = 0u;
  if (WINDOW > 0u && first + 1u > WINDOW) { begin = first + 1u - WINDOW; }
#for i in D4
  let q_${i} = q[at * D4 + ${i}u];
  let dy_${i} = dy[at * D4 + ${i}u];
  var sum_${i} = vec4<f32>(0.0);
#end
  for (var key = begin; key <= last; key++) {
    let row = ((base + key) * K + kv) * D4;
    var held_k: array<vec4<f32>, ${HELD}>;
    var held_v: array<vec4<f32>, ${HELD}>;
#for h in HELD
    held_k[${h}] = k_cache[row + ${h}u * LANES + lane];
    held_v[${h}] = v_cache[row + ${h}u * LANES + lane];
#end
    var raws = vec4<f32>(0.0);
    var pulls = vec4<f32>(0.0);
#for i in D4
    raws += q_${i} * subgroupShuffle(held_k[${i}u / LANES], ${i}u % LANES);
    pulls += dy_${i} * subgroupShuffle(held_v[${i}u / LANES], ${i}u % LANES);
#end
    let value = score(raws.x + raws.y + raws.z + raws.w, alibi_slope(head), position - key);
    let pull = pulls.x + pulls.y + pulls.z + pulls.w;
    let slope = exp(clamp(value - known.x, -80.0, 80.0)) * (pull - known.y) * score_slope(value);
    let factor = select(0.0, slope, visible(position, key));
#for i in D4
    sum_${i} += factor * subgroupShuffle(held_k[${i}u / LANES], ${i}u % LANES);
#end
  }
  if (lane < count) {
#for i in D4
    dq[at * D4 + ${i}u] = sum_${i};
#end
  }
}
