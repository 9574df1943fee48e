// Attention of single tokens, split along the cached positions (flash decoding): lib/attention_run.wgsl with queries
// from a buffer. One workgroup per key-value head, token and run of SPLIT positions. q [T, H, d]; cache [rows, K, d].
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k_cache: array<${CACHE}>;
@group(0) @binding(2) var<storage, read> v_cache: array<${CACHE}>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> bases: array<u32>;
@group(0) @binding(5) var<storage, read_write> partial: array<f32>;

fn query4(i: u32) -> vec4<f32> { return q[i]; }

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {
  let kv = group.x;
  let split = group.y;
  let token = group.z;
  let position = positions[token];
  // Runs beyond this token's position are not read by the merge either.
  if (split * SPLIT > position) { return; }
  let run = visible(split, position);
  if (run.x >= run.y) {
    write_empty(token, split, kv, me.lane);
    return;
  }
  attend(token, split, kv, (token * H + kv * G) * D4, bases[token], position, run, me);
}
