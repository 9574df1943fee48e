// For one token: splits its fused projection into heads, normalises (QK_NORM) and rotates queries and keys, appends key
// and value to the cache, and attends over one run of cached positions (lib/attention_run.wgsl). Does the work of the
// dispatches rope, append and attention_split in one. One workgroup per key-value head, run and token; the tokens of a
// step belong to different sequences. qkv [T, (H + 2K) d]; table [positions, R/2, 2]; cache [rows, K, d].
@group(0) @binding(0) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> positions: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bases: array<u32>;
@group(0) @binding(4) var<storage, read_write> k_cache: array<${CACHE}>;
@group(0) @binding(5) var<storage, read_write> v_cache: array<${CACHE}>;
@group(0) @binding(6) var<storage, read_write> partial: array<f32>;
#if QK_NORM
@group(0) @binding(7) var<storage, read> q_norm: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read> k_norm: array<vec4<f32>>;
const WIDE = 4u;
fn total(v: vec4<f32>) -> f32 { return dot(v, vec4<f32>(1.0)); }
#endif

const HALF4 = ${ROTARY}u / 8u;
// Invocations that rotate one head. Where heads are normalised, all take the same head, because they add it up
// together.
const ROTATE = ${ROTATE}u;

var<workgroup> queries: array<vec4<f32>, ${G_D4}>; // [G, d / 4]
fn query4(i: u32) -> vec4<f32> { return queries[i]; }

#if ELEMENT == f16
fn packed(v: vec4<f32>) -> vec2<u32> { return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw)); }
#else
fn packed(v: vec4<f32>) -> vec4<f32> { return v; }
#endif

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {
  let lane = me.lane;
  let kv = group.x;
  let split = group.y;
  let token = group.z;
  let position = positions[token];
  let base = bases[token];
  // Runs beyond this token's position are not read by the merge either.
  if (split * SPLIT > position) { return; }
  let run = visible(split, position);
  if (run.x >= run.y) {
    write_empty(token, split, kv, lane);
    return;
  }
  let projected = token * (H + 2u * K) * D4;
  let angles = position * HALF4 * 2u;
  // The group's query heads, and also the key if this run contains the token's own position.
  let owner = split == position / SPLIT;
  let heads = select(G, G + 1u, owner);
  let row = (cache_row(base, position) * K + kv) * D4;
#if QK_NORM
  let first_head = 0u;
#else
  let first_head = lane / ROTATE;
#endif
  let turn = lane % ROTATE;
  for (var h = first_head; h < heads; h += ${THREADS}u / ROTATE) {
    let is_query = h < G;
    let source = projected + select(H + kv, kv * G + h, is_query) * D4;
#if QK_NORM
#if QK_WHOLE
    let norm = head_norm(projected + select(H, 0u, is_query) * D4, select(K, H, is_query) * D4, me);
#else
    let norm = head_norm(source, D4, me);
#endif
#if QK_EACH
    let own = select(kv, kv * G + h, is_query) * D4;
#else
    let own = 0u;
#endif
#endif
#if INTERLEAVED
    for (var i = turn; i < 2u * HALF4; i += ROTATE) {
      var a = qkv[source + i];
#if QK_NORM
      a = (a - norm.mean) * norm.scale;
      if (is_query) { a *= q_norm[own + i]; } else { a *= k_norm[own + i]; }
#endif
      let t = table[angles + i];
      let rotated =
          vec4<f32>(a.x * t.x - a.y * t.y, a.y * t.x + a.x * t.y, a.z * t.z - a.w * t.w, a.w * t.z + a.z * t.w);
      if (is_query) { queries[h * D4 + i] = rotated; } else { k_cache[row + i] = packed(rotated); }
    }
#else
    for (var i = turn; i < HALF4; i += ROTATE) {
      var a = qkv[source + i];
      var b = qkv[source + i + HALF4];
#if QK_NORM
      a = (a - norm.mean) * norm.scale;
      b = (b - norm.mean) * norm.scale;
      if (is_query) {
        a *= q_norm[own + i];
        b *= q_norm[own + i + HALF4];
      } else {
        a *= k_norm[own + i];
        b *= k_norm[own + i + HALF4];
      }
#endif
      let t = table[angles + 2u * i];
      let s = table[angles + 2u * i + 1u];
      let cosines = vec4<f32>(t.x, t.z, s.x, s.z);
      let sines = vec4<f32>(t.y, t.w, s.y, s.w);
      let first = a * cosines - b * sines;
      let second = b * cosines + a * sines;
      if (is_query) { queries[h * D4 + i] = first; queries[h * D4 + i + HALF4] = second; }
      else { k_cache[row + i] = packed(first); k_cache[row + i + HALF4] = packed(second); }
    }
#endif
    for (var i = 2u * HALF4 + turn; i < D4; i += ROTATE) {
      var a = qkv[source + i];
#if QK_NORM
      a = (a - norm.mean) * norm.scale;
      if (is_query) { a *= q_norm[own + i]; } else { a *= k_norm[own + i]; }
#endif
      if (is_query) { queries[h * D4 + i] = a; } else { k_cache[row + i] = packed(a); }
    }
  }
  if (owner) {
    for (var i = lane; i < D4; i += ${THREADS}u) { v_cache[row + i] = packed(qkv[projected + (H + K + kv) * D4 + i]); }
  }
  storageBarrier();
  workgroupBarrier();
  attend(token, split, kv, 0u, base, position, run, me);
}
