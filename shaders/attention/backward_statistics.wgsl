// First pass, for each query and head: the log-sum-exp of its scores, Σ dy∘y, its sequence's base and its position. One
// workgroup per query head and tile of queries.
@group(0) @binding(5) var<storage, read> positions: array<u32>;
@group(0) @binding(6) var<storage, read> bases: array<u32>;
@group(0) @binding(7) var<storage, read_write> statistics: array<vec4<f32>>; // [T, H]

var<workgroup> weights: array<f32, ${TILE_TILE}>; // [query, key]

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let head = group.x;
  let tile = tiles[group.y];
  if (tile.y == 0u) { return; }
  let base = bases[tile.x];
  let first = positions[tile.x];
  let last = first + tile.y - 1u;
  var begin = 0u;
  if (WINDOW > 0u && first + 1u > WINDOW) { begin = first + 1u - WINDOW; }
  let slope = alibi_slope(head);
  var peak = -1e30;
  var total = 0.0;
  for (var start = begin; start <= last; start += TILE) {
    products(lane, head, tile.x, tile.x + tile.y - 1u, base + start, base + last);
#for o in PAIRS
    {
      let i = lane + ${o}u * THREADS;
      if (i < TILE * TILE) {
        let seen = visible(first + i / TILE, start + i % TILE) && start + i % TILE <= last;
        weights[i] = select(-1e30, score(raw_${o}, slope, first + i / TILE - start - i % TILE), seen);
      }
    }
#end
    workgroupBarrier();
    if (lane < TILE) {
      let old = peak;
      for (var j = 0u; j < TILE; j++) { peak = max(peak, weights[lane * TILE + j]); }
      total *= exp(max(old - peak, -80.0));
      for (var j = 0u; j < TILE; j++) {
        let value = weights[lane * TILE + j];
        if (value > -1e29) { total += exp(max(value - peak, -80.0)); }
      }
    }
    workgroupBarrier();
  }
  if (lane < tile.y) {
    let at = (tile.x + lane) * H + head;
    var sum = 0.0;
    for (var c = 0u; c < D4; c++) { sum += dot(dy[at * D4 + c], y[at * D4 + c]); }
    statistics[at] = vec4<f32>(peak + log(total), sum, f32(base), f32(first + lane));
  }
}
