// First pass, one query per invocation of a subgroup: the log-sum-exp of its scores, Σ dy∘y, its sequence's base and
// its position.
@group(0) @binding(5) var<storage, read> positions: array<u32>;
@group(0) @binding(6) var<storage, read> bases: array<u32>;
@group(0) @binding(7) var<storage, read_write> statistics: array<vec4<f32>>; // [T, H]

@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let head = group.x;
  let kv = head / (H / K);
  let tile = tiles[group.y / PARTS];
  let offset = group.y % PARTS * LANES;
  if (tile.y <= offset) { return; }
  let count = min(tile.y - offset, LANES);
  let base = bases[tile.x];
  let first = positions[tile.x] + offset;
  let last = first + count - 1u;
  let position = first + min(lane, count - 1u);
  let at = (tile.x + offset + min(lane, count - 1u)) * H + head;
  var begin = 0u;
  if (WINDOW > 0u && first + 1u > WINDOW) { begin = first + 1u - WINDOW; }
  var sum = 0.0;
#for i in D4
  let q_${i} = q[at * D4 + ${i}u];
  sum += dot(dy[at * D4 + ${i}u], y[at * D4 + ${i}u]);
#end
  var peak = -1e30;
  var total = 0.0;
  for (var key = begin; key <= last; key++) {
    let row = ((base + key) * K + kv) * D4;
    var held: array<vec4<f32>, ${HELD}>;
#for h in HELD
    held[${h}] = k_cache[row + ${h}u * LANES + lane];
#end
    var raw = vec4<f32>(0.0);
#for i in D4
    raw += q_${i} * subgroupShuffle(held[${i}u / LANES], ${i}u % LANES);
#end
    if (visible(position, key)) {
      let value = score(raw.x + raw.y + raw.z + raw.w, alibi_slope(head), position - key);
      let higher = max(peak, value);
      total = total * exp(max(peak - higher, -80.0)) + exp(max(value - higher, -80.0));
      peak = higher;
    }
  }
  if (lane < count) { statistics[at] = vec4<f32>(peak + log(total), sum, f32(base), f32(position)); }
}
