// Third pass, one key per invocation of a subgroup: dv[p] = Σ_t w[t, p] dy[t], dk[p] = Σ_t ds[t, p] q[t], over the
// queries that see p and the heads of the group.
@group(0) @binding(5) var<storage, read> statistics: array<vec4<f32>>; // [T, H]
@group(0) @binding(6) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> dv: array<vec4<f32>>;

@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let kv = group.x;
  let own = tiles[group.y / PARTS];
  let offset = group.y % PARTS * LANES;
  if (own.y <= offset) { return; }
  let count = min(own.y - offset, LANES);
  let about = statistics[(own.x + offset) * H];
  let base = u32(about.z);
  let start = u32(about.w); // position of the first key
  let key = start + min(lane, count - 1u);
  let last = start + count - 1u;
  let row = ((base + key) * K + kv) * D4;
#for i in D4
  let k_${i} = k_cache[row + ${i}u];
  let v_${i} = v_cache[row + ${i}u];
  var dk_${i} = vec4<f32>(0.0);
  var dv_${i} = vec4<f32>(0.0);
#end
  // The tiles of one sequence are consecutive.
  for (var index = group.y / PARTS; index < arrayLength(&tiles); index++) {
    let tile = tiles[index];
    if (tile.y == 0u) { break; }
    let now = statistics[tile.x * H];
    let first = u32(now.w);
    if (u32(now.z) != base || (index > group.y / PARTS && first <= start)) { break; }
    if (WINDOW > 0u && first >= last + WINDOW) { break; }
    for (var t = 0u; t < tile.y; t++) {
      if (first + t < start) { continue; }
      for (var g = 0u; g < H / K; g++) {
        let at = (tile.x + t) * H + kv * (H / K) + g;
        let known = statistics[at];
        var held_q: array<vec4<f32>, ${HELD}>;
        var held_dy: array<vec4<f32>, ${HELD}>;
#for h in HELD
        held_q[${h}] = q[at * D4 + ${h}u * LANES + lane];
        held_dy[${h}] = dy[at * D4 + ${h}u * LANES + lane];
#end
        var raws = vec4<f32>(0.0);
        var pulls = vec4<f32>(0.0);
#for i in D4
        raws += k_${i} * subgroupShuffle(held_q[${i}u / LANES], ${i}u % LANES);
        pulls += v_${i} * subgroupShuffle(held_dy[${i}u / LANES], ${i}u % LANES);
#end
        let value = score(raws.x + raws.y + raws.z + raws.w, alibi_slope(kv * (H / K) + g), first + t - key);
        let pull = pulls.x + pulls.y + pulls.z + pulls.w;
        let seen = select(0.0, exp(clamp(value - known.x, -80.0, 80.0)), visible(first + t, key));
        let slope = seen * (pull - known.y) * score_slope(value);
#for i in D4
        dk_${i} += slope * subgroupShuffle(held_q[${i}u / LANES], ${i}u % LANES);
        dv_${i} += seen * subgroupShuffle(held_dy[${i}u / LANES], ${i}u % LANES);
#end
      }
    }
  }
  if (lane < count) {
#for i in D4
    dk[row + ${i}u] = dk_${i};
    dv[row + ${i}u] = dv_${i};
#end
  }
}
