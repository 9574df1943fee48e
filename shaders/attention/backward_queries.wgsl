// Second pass: dq[t] = Σ_p ds[t, p] k[p] with ds = w (dy·v - Σ dy∘y) score'.   One workgroup per query head and tile of
// queries.
@group(0) @binding(5) var<storage, read> statistics: array<vec4<f32>>; // [T, H]
@group(0) @binding(6) var<storage, read_write> dq: array<vec4<f32>>;

const TOGETHER = ${TOGETHER}u;

var<workgroup> slopes: array<f32, ${TILE_TILE}>; // [query, key]

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let head = group.x;
  let kv = head / (H / K);
  let tile = tiles[group.y];
  if (tile.y == 0u) { return; }
  let about = statistics[tile.x * H + head];
  let base = u32(about.z);
  let first = u32(about.w);
  let last = first + tile.y - 1u;
  var begin = 0u;
  if (WINDOW > 0u && first + 1u > WINDOW) { begin = first + 1u - WINDOW; }
  let column = lane % D4;
  let part = lane / D4;
#for m in EACH
  var sum_${m} = vec4<f32>(0.0);
#end
  for (var start = begin; start <= last; start += TILE) {
    products(lane, head, tile.x, tile.x + tile.y - 1u, base + start, base + last);
#for o in PAIRS
    {
      let i = lane + ${o}u * THREADS;
      if (i < TILE * TILE) {
        let t = i / TILE;
        let key = start + i % TILE;
        var slope = 0.0;
        if (t < tile.y && key <= last && visible(first + t, key)) {
          let known = statistics[(tile.x + t) * H + head];
          let value = score(raw_${o}, alibi_slope(head), first + t - key);
          slope = exp(clamp(value - known.x, -80.0, 80.0)) * (pull_${o} - known.y) * score_slope(value);
        }
        slopes[i] = slope;
      }
    }
#end
    workgroupBarrier();
    if (part < TOGETHER) {
      for (var j = 0u; j < min(TILE, last + 1u - start); j++) {
        let key = k_cache[((base + start + j) * K + kv) * D4 + column];
#for m in EACH
        sum_${m} += slopes[(part + ${m}u * TOGETHER) * TILE + j] * key;
#end
      }
    }
    workgroupBarrier();
  }
#for m in EACH
  {
    let t = part + ${m}u * TOGETHER;
    if (part < TOGETHER && t < tile.y) { dq[((tile.x + t) * H + head) * D4 + column] = sum_${m}; }
  }
#end
}
