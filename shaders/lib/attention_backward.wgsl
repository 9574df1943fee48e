// Scores of a tile of queries against a tile of keys, and dy·v: shared by the passes of attention_backward. q, dy [T,
// H, d]; k_cache, v_cache [rows, K, d]; tiles: (first token, number of tokens), each of one sequence.
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k_cache: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
#if STATISTICS
@group(0) @binding(3) var<storage, read> y: array<vec4<f32>>;
#else
@group(0) @binding(3) var<storage, read> v_cache: array<vec4<f32>>;
#endif
@group(0) @binding(4) var<storage, read> tiles: array<vec2<u32>>;

const H = ${H}u;
const K = ${K}u;
const D4 = ${d}u / 4u;
const TILE = ${TILE}u;
const THREADS = ${THREADS}u;
const WINDOW = ${WINDOW}u; // 0: none
const PITCH = 9u; // row stride of a part of a tile: 8 vectors and one of padding

var<workgroup> part_q: array<vec4<f32>, ${TILE_9}>;
var<workgroup> part_k: array<vec4<f32>, ${TILE_9}>;
#if !STATISTICS
var<workgroup> part_dy: array<vec4<f32>, ${TILE_9}>;
var<workgroup> part_v: array<vec4<f32>, ${TILE_9}>;
#endif
// q·k and dy·v of the pairs lane + o * THREADS, which this invocation computes.
#for o in PAIRS
var<private> raw_${o}: f32;
var<private> pull_${o}: f32;
#end

// The derivative of score() with respect to raw, given the score.
fn score_slope(value: f32) -> f32 {
#if SOFTCAP
  let t = value / ${CAP};
  return ${SCALE} * (1.0 - t * t);
#else
  return ${SCALE};
#endif
}

fn visible(query: u32, key: u32) -> bool { return key <= query && (WINDOW == 0u || key + WINDOW > query); }

// Computes q·k (raw) and dy·v (pull) for every pair of TILE queries from `token` on and TILE cache rows from `row` on;
// rows beyond the last repeat the last. Ends with a barrier, so that its workgroup memory may be overwritten.
fn products(lane: u32, head: u32, token: u32, last_token: u32, row: u32, last_row: u32) {
  let kv = head / (H / K);
#for o in PAIRS
  var a_${o} = 0.0;
  var b_${o} = 0.0;
#end
  for (var c0 = 0u; c0 < D4; c0 += 8u) {
    for (var i = lane; i < TILE * 8u; i += THREADS) {
      let c = c0 + i % 8u;
      let to = i / 8u * PITCH + i % 8u;
      if (c < D4) {
        let query = (min(token + i / 8u, last_token) * H + head) * D4 + c;
        let key = (min(row + i / 8u, last_row) * K + kv) * D4 + c;
        part_q[to] = q[query];
        part_k[to] = k_cache[key];
#if !STATISTICS
        part_dy[to] = dy[query];
        part_v[to] = v_cache[key];
#endif
      } else {
        part_q[to] = vec4<f32>(0.0);
#if !STATISTICS
        part_dy[to] = vec4<f32>(0.0);
#endif
        part_k[to] = vec4<f32>(0.0);
#if !STATISTICS
        part_v[to] = vec4<f32>(0.0);
#endif
      }
    }
    workgroupBarrier();
    for (var c = 0u; c < 8u; c++) {
#for o in PAIRS
      {
        let i = min(lane + ${o}u * THREADS, TILE * TILE - 1u);
        a_${o} += dot(part_q[i / TILE * PITCH + c], part_k[i % TILE * PITCH + c]);
#if !STATISTICS
        b_${o} += dot(part_dy[i / TILE * PITCH + c], part_v[i % TILE * PITCH + c]);
#endif
      }
#end
    }
    workgroupBarrier();
  }
#for o in PAIRS
  raw_${o} = a_${o};
  pull_${o} = b_${o};
#end
}
