// Second pass of log-probabilities, one workgroup for each row: joins the chunks of log_probs_scan.wgsl, and finds the
// most likely tokens. Each chunk offers its largest logit that was not taken yet; after the best of these is taken,
// only its chunk is read again. chosen [R] and wanted [R]: the token whose logit is given, and the number of most
// likely ones. values [R, 3 + TOP]: largest logit, Σ exp(logit - largest), chosen logit, largest logits; ids [R, TOP].
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> parts: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> chosen: array<u32>;
@group(0) @binding(3) var<storage, read> wanted: array<u32>;
@group(0) @binding(4) var<storage, read_write> values: array<f32>;
@group(0) @binding(5) var<storage, read_write> ids_out: array<u32>;

const V = ${V}u;
const CHUNK = ${CHUNK}u;
const CHUNKS = ${CHUNKS}u;
const THREADS = ${THREADS}u;
const TOP = ${TOP}u;

// Key and id of what each chunk offers.
var<workgroup> offers: array<vec2<u32>, CHUNKS>;

// The best offer of all chunks.
fn best_offer(lane: u32) -> vec2<u32> {
  var best = vec2<u32>(0u, V);
  for (var chunk = lane; chunk < CHUNKS; chunk += THREADS) {
    let offer = offers[chunk];
    if (offer.x > best.x) { best = offer; }
  }
  return best_of(best.x, best.y, lane);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.x;
  let out = row * (3u + TOP);
  for (var chunk = lane; chunk < CHUNKS; chunk += THREADS) { offers[chunk] = parts[row * CHUNKS + chunk].xy; }
  var best = best_offer(lane);
  let peak = value_of(best.x);
  var sum = 0.0;
  for (var chunk = lane; chunk < CHUNKS; chunk += THREADS) {
    let part = parts[row * CHUNKS + chunk];
    sum += bitcast<f32>(part.z) * exp(max(value_of(part.x) - peak, -80.0));
  }
  keys[lane] = bitcast<u32>(sum);
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    if (lane < half) { keys[lane] = bitcast<u32>(bitcast<f32>(keys[lane]) + bitcast<f32>(keys[lane + half])); }
    workgroupBarrier();
  }
  if (lane == 0u) {
    values[out] = peak;
    values[out + 1u] = bitcast<f32>(keys[0]);
    values[out + 2u] = logits[row * V + min(chosen[row], V - 1u)];
  }
  let count = min(wanted[row], min(TOP, V));
  for (var i = lane; i < TOP; i += THREADS) {
    if (i >= count) {
      values[out + 3u + i] = 0.0;
      ids_out[row * TOP + i] = 0u;
    }
  }
  workgroupBarrier();
  for (var place = 0u; place < count; place++) {
    if (lane == 0u) {
      values[out + 3u + place] = value_of(best.x);
      ids_out[row * TOP + place] = best.y;
    }
    // What the chunk offers next: the largest logit behind the one that was taken.
    let chunk = best.y / CHUNK;
    let end = min((chunk + 1u) * CHUNK, V);
    var next = vec2<u32>(0u, V);
    for (var i = chunk * CHUNK + lane; i < end; i += THREADS) {
      let key = key_of(logits[row * V + i]);
      let behind = key < best.x || (key == best.x && i > best.y);
      if (behind && key > next.x) { next = vec2<u32>(key, i); }
    }
    next = best_of(next.x, next.y, lane);
    if (lane == 0u) { offers[chunk] = next; }
    workgroupBarrier();
    best = best_offer(lane);
  }
}
