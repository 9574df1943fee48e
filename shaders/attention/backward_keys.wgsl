// Third pass: dv[p] = Σ_t w[t, p] dy[t], dk[p] = Σ_t ds[t, p] q[t], over the queries that see p and the heads of the
// group. One workgroup per key-value head and tile of the step's keys; a tile's keys belong to the same tokens as its
// queries.
@group(0) @binding(5) var<storage, read> statistics: array<vec4<f32>>; // [T, H]
@group(0) @binding(6) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> dv: array<vec4<f32>>;

const TOGETHER = ${TOGETHER}u;

var<workgroup> weights: array<f32, ${TILE_TILE}>; // [query, key]
var<workgroup> slopes: array<f32, ${TILE_TILE}>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let kv = group.x;
  let own = tiles[group.y];
  if (own.y == 0u) { return; }
  let about = statistics[own.x * H];
  let base = u32(about.z);
  let start = u32(about.w); // position of the first key
  let last = start + own.y - 1u;
  let column = lane % D4;
  let part = lane / D4;
#for m in EACH
  var dk_${m} = vec4<f32>(0.0);
  var dv_${m} = vec4<f32>(0.0);
#end
  // The tiles of one sequence are consecutive.
  for (var index = group.y; index < arrayLength(&tiles); index++) {
    let tile = tiles[index];
    if (tile.y == 0u) { break; }
    let now = statistics[tile.x * H];
    let first = u32(now.w);
    if (u32(now.z) != base || (index > group.y && first <= start)) { break; }
    if (WINDOW > 0u && first >= last + WINDOW) { break; }
    for (var g = 0u; g < H / K; g++) {
      let head = kv * (H / K) + g;
      products(lane, head, tile.x, tile.x + tile.y - 1u, base + start, base + last);
#for o in PAIRS
      {
        let i = lane + ${o}u * THREADS;
        if (i < TILE * TILE) {
          let t = i / TILE;
          let key = start + i % TILE;
          var weight = 0.0;
          var slope = 0.0;
          if (t < tile.y && key <= last && visible(first + t, key)) {
            let known = statistics[(tile.x + t) * H + head];
            let value = score(raw_${o}, alibi_slope(head), first + t - key);
            weight = exp(clamp(value - known.x, -80.0, 80.0));
            slope = weight * (pull_${o} - known.y) * score_slope(value);
          }
          weights[i] = weight;
          slopes[i] = slope;
        }
      }
#end
      workgroupBarrier();
      if (part < TOGETHER) {
        for (var t = 0u; t < tile.y; t++) {
          let at = ((tile.x + t) * H + head) * D4 + column;
          let query = q[at];
          let gradient = dy[at];
#for m in EACH
          dk_${m} += slopes[t * TILE + part + ${m}u * TOGETHER] * query;
          dv_${m} += weights[t * TILE + part + ${m}u * TOGETHER] * gradient;
#end
        }
      }
      workgroupBarrier();
    }
  }
#for m in EACH
  {
    let j = part + ${m}u * TOGETHER;
    if (part < TOGETHER && j < own.y) {
      let to = ((base + start + j) * K + kv) * D4 + column;
      dk[to] = dk_${m};
      dv[to] = dv_${m};
    }
  }
#end
}
