// As sampling/pick.wgsl, for hardware: reads only those chunks whose largest logits can matter. The W largest peaks of
// chunks belong to W different tokens, so the W-th largest peak is a bound that at least W logits reach. The logits
// above it, the candidates, are sorted in workgroup memory, and top-k, top-p and the draw look at them alone. Where
// they are more than fit, or their mass is too small for top-p, thresholds are searched over all logits.
var<workgroup> peak_keys: array<u32, ${CHUNKS}>;
var<workgroup> chosen_chunks: array<u32, ${CHUNKS}>;
var<workgroup> sorted_keys: array<u32, THREADS>;
var<workgroup> sorted_ids: array<u32, THREADS>;
var<workgroup> counter: atomic<u32>;

// Sums over all invocations, in every invocation.
fn sum_of(value: f32, lane: u32) -> f32 {
  keys[lane] = bitcast<u32>(value);
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    if (lane < half) { keys[lane] = bitcast<u32>(bitcast<f32>(keys[lane]) + bitcast<f32>(keys[lane + half])); }
    workgroupBarrier();
  }
  if (lane == 0u) { shared_result.x = keys[0]; }
  return bitcast<f32>(workgroupUniformLoad(&shared_result).x);
}

// Keys of four of a row's logits, THREADS apart from i on, with 0 for those below `least` and beyond the row. They are
// read together, unless the peaks of their chunks show that none of them counts.
fn reaching(row: u32, i: u32, least: u32) -> vec4<u32> {
  let at = i + vec4<u32>(0u, THREADS, 2u * THREADS, 3u * THREADS);
  let inside = min(at, vec4<u32>(V - 1u));
  let chunks = inside / CHUNK;
  let peaks_of = vec4<u32>(peak_keys[chunks.x], peak_keys[chunks.y], peak_keys[chunks.z], peak_keys[chunks.w]);
  let wanted = (peaks_of >= vec4<u32>(least)) & (at < vec4<u32>(V));
  if (!any(wanted)) { return vec4<u32>(0u); }
  let first = row * V;
  let read = vec4<f32>(
      logits[first + inside.x], logits[first + inside.y], logits[first + inside.z], logits[first + inside.w]);
  let found = vec4<u32>(key_of(read.x), key_of(read.y), key_of(read.z), key_of(read.w));
  return select(vec4<u32>(0u), found, wanted & (found >= vec4<u32>(least)));
}

fn weight_of(key: u32, peak: f32, mass: bool) -> f32 {
  return select(0.0, select(1.0, exp(max(value_of(max(key, 1u)) - peak, -80.0)), mass), key > 0u);
}

// For each of four keys, the number of logits with at least that key, or with `mass` their total exp(logit - peak).
fn above(row: u32, lane: u32, least: vec4<u32>, peak: f32, mass: bool) -> vec4<f32> {
  var sums = vec4<f32>(0.0);
  for (var i = lane; i < V; i += 4u * THREADS) {
    let found = reaching(row, i, least.x);
#for u in 4
    sums += select(vec4<f32>(0.0), vec4<f32>(weight_of(found[${u}], peak, mass)), vec4<u32>(found[${u}]) >= least);
#end
  }
#for c in 4
  sums[${c}] = sum_of(sums[${c}], lane);
#end
  return sums;
}

// The largest key such that the logits with at least this key number (or have a mass of) at least `wanted`. Each pass
// divides the range in five.
fn threshold(row: u32, lane: u32, floor: u32, peak: f32, wanted: f32, mass: bool) -> u32 {
  var low = floor;
  var high = key_of(peak);
  while (low < high) {
    let range = high - low;
    let step = range / 5u + 1u;
    let middles = low + min(vec4<u32>(step, 2u * step, 3u * step, 4u * step), vec4<u32>(range));
    let found = above(row, lane, middles, peak, mass);
    if (found.x < wanted) { high = middles.x - 1u; }
    else if (found.y < wanted) { low = middles.x; high = middles.y - 1u; }
    else if (found.z < wanted) { low = middles.y; high = middles.z - 1u; }
    else if (found.w < wanted) { low = middles.z; high = middles.w - 1u; }
    else { low = middles.w; }
    high = max(low, high);
  }
  return low;
}

// Sorts all logits that the `wanted` largest peaks of chunks bound from below. Returns their number, or 0 if they do
// not fit.
fn gather(row: u32, lane: u32, wanted: u32) -> u32 {
  if (lane == 0u) { shared_result = vec2<u32>(0u); atomicStore(&counter, 0u); }
  workgroupBarrier();
  for (var chunk = lane; chunk < CHUNKS; chunk += THREADS) {
    let key = peak_keys[chunk];
    var rank = 0u;
    for (var other = 0u; other < CHUNKS; other++) {
      rank += u32(peak_keys[other] > key || (peak_keys[other] == key && other < chunk));
    }
    if (rank + 1u == wanted) { shared_result.x = key; }
  }
  let bound = workgroupUniformLoad(&shared_result).x;
  for (var chunk = lane; chunk < CHUNKS; chunk += THREADS) {
    if (peak_keys[chunk] >= bound) { chosen_chunks[atomicAdd(&counter, 1u)] = chunk; }
  }
  workgroupBarrier();
  if (lane == 0u) { shared_result.x = atomicLoad(&counter); atomicStore(&counter, 0u); }
  let length = workgroupUniformLoad(&shared_result).x * CHUNK;
  for (var at = lane; at < length; at += 4u * THREADS) {
#for u in 4
    let at_${u} = at + ${u}u * THREADS;
    let i_${u} = chosen_chunks[min(at_${u}, length - 1u) / CHUNK] * CHUNK + at_${u} % CHUNK;
    let key_${u} = select(0u, key_of(logits[row * V + min(i_${u}, V - 1u)]), at_${u} < length && i_${u} < V);
#end
#for u in 4
    if (key_${u} >= bound && key_${u} > 0u) {
      let place = atomicAdd(&counter, 1u);
      if (place < THREADS) { keys[place] = key_${u}; ids[place] = i_${u}; }
    }
#end
  }
  workgroupBarrier();
  if (lane == 0u) { shared_result.x = atomicLoad(&counter); }
  let count = workgroupUniformLoad(&shared_result).x;
  if (count > THREADS) { return 0u; }
  // In a fixed order, so that sums over the candidates do not depend on the order in which they were found.
  if (lane < count) {
    var rank = 0u;
    for (var other = 0u; other < count; other++) {
      rank += u32(keys[other] > keys[lane] || (keys[other] == keys[lane] && ids[other] < ids[lane]));
    }
    sorted_keys[rank] = keys[lane];
    sorted_ids[rank] = ids[lane];
  }
  workgroupBarrier();
  return count;
}

// The threshold of top-p over the first `count` candidates, which must reach a mass of `wanted`; 0 if they do not.
fn enough(lane: u32, count: u32, peak: f32, wanted: f32) -> u32 {
  // keys holds the sums of all candidates up to each.
  keys[lane] = 0u;
  if (lane < count) { keys[lane] = bitcast<u32>(weight_of(sorted_keys[lane], peak, true)); }
  workgroupBarrier();
  for (var step = 1u; step < THREADS; step *= 2u) {
    var sum = bitcast<f32>(keys[lane]);
    if (lane >= step) { sum += bitcast<f32>(keys[lane - step]); }
    workgroupBarrier();
    keys[lane] = bitcast<u32>(sum);
    workgroupBarrier();
  }
  if (lane == 0u) { shared_result.x = 0u; }
  workgroupBarrier();
  if (lane < count && bitcast<f32>(keys[lane]) >= wanted) {
    if (lane == 0u || bitcast<f32>(keys[max(lane, 1u) - 1u]) < wanted) { shared_result.x = sorted_keys[lane]; }
  }
  return workgroupUniformLoad(&shared_result).x;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.x;
  var key = 0u;
  var id = V;
  for (var chunk = lane; chunk < CHUNKS; chunk += THREADS) {
    let found = peaks[row * CHUNKS + chunk];
    let own = key_of(bitcast<f32>(found.x));
    peak_keys[chunk] = own;
    if (own > key) { key = own; id = found.y; }
  }
  let best = best_of(key, id, lane);
  var token = best.y;
  let temperature = settings[row * 16u];
  if (temperature > 0.0) {
    let peak = value_of(best.x);
    let top_k = settings[row * 16u + 1u];
    let top_p = settings[row * 16u + 2u];
    let min_p = settings[row * 16u + 3u];
    var least = 0u;
    // Candidates, if all that remain are among them.
    var count = 0u;
    if (top_k > 0.0) {
      let wanted = u32(min(top_k, f32(V)));
      if (wanted <= max(CHUNKS, THREADS)) { count = gather(row, lane, min(wanted, CHUNKS)); }
      // With fewer chunks than wanted tokens, the bound does not promise enough candidates.
      if (count < wanted) { count = 0u; }
      if (count > 0u) {
        if (lane == 0u) { shared_result.x = sorted_keys[wanted - 1u]; }
        least = workgroupUniformLoad(&shared_result).x;
      } else {
        least = threshold(row, lane, 0u, peak, top_k, false);
      }
    } else if (top_p < 1.0) {
      count = gather(row, lane, clamp(CHUNKS * 3u / 4u, 1u, THREADS / 4u));
    }
    if (top_p < 1.0) {
      var kept = 0u;
      if (count > 0u) {
        var mass = 0.0;
        if (top_k > 0.0) {
          if (lane < count && sorted_keys[lane] >= least) { mass = weight_of(sorted_keys[lane], peak, true); }
          mass = sum_of(mass, lane);
        } else {
          mass = above(row, lane, vec4<u32>(0u), peak, true).x;
        }
        kept = enough(lane, count, peak, top_p * mass);
        if (kept == 0u && top_k > 0.0) { kept = least; }
      }
      if (kept > 0u) {
        least = max(least, kept);
      } else {
        count = 0u;
        least = threshold(row, lane, least, peak, top_p * above(row, lane, vec4<u32>(least), peak, true).x, true);
      }
    }
    if (min_p > 0.0) { least = max(least, key_of(peak + log(min_p))); }
    let of_position = hash(bitcast<u32>(settings[row * 16u + 9u]) ^ hash(positions[row]));
    let seed = hash(bitcast<u32>(settings[row * 16u + 8u]) ^ of_position);
    key = 0u;
    id = V;
    if (count > 0u) {
      if (lane < count && sorted_keys[lane] >= least) {
        id = sorted_ids[lane];
        key = key_of((value_of(sorted_keys[lane]) - peak) / temperature + gumbel(seed, id));
      }
    } else {
      for (var i = lane; i < V; i += 4u * THREADS) {
        let found = reaching(row, i, least);
#for u in 4
        if (found[${u}] > 0u) {
          let own = i + ${u}u * THREADS;
          let noisy = key_of((value_of(found[${u}]) - peak) / temperature + gumbel(seed, own));
          if (noisy > key) { key = noisy; id = own; }
        }
#end
      }
    }
    token = best_of(key, id, lane).y;
  }
  if (lane == 0u) {
    tokens[row] = token;
    counts[row * V + token] += 1u;
    positions[row] += 1u;
  }
}
