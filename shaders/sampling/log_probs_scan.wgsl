// First pass of log-probabilities: for each chunk of a row its largest logit, as a key (lib/float_order.wgsl), with its
// id, and Σ exp(logit - largest). logits [R, V]; parts [R, chunks]: key, id, the sum's bits, unused.
@group(0) @binding(0) var<storage, read> logits: array<${VEC}>;
@group(0) @binding(1) var<storage, read_write> parts: array<vec4<u32>>;

const V = ${V}u;
const CHUNK = ${CHUNK}u;
const CHUNKS = ${CHUNKS}u;
const THREADS = ${THREADS}u;

var<workgroup> sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.y;
  let end = min((group.x + 1u) * CHUNK, V);
  var key = 0u;
  var id = V;
  // An invocation's ids rise, so that the smaller one wins a tie.
#if SCALAR
  for (var i = group.x * CHUNK + lane; i < end; i += THREADS) {
    let own = key_of(logits[row * V + i]);
    if (own > key) { key = own; id = i; }
  }
#else
  for (var i = group.x * CHUNK / 4u + lane; i < end / 4u; i += THREADS) {
    let four = logits[row * (V / 4u) + i];
#for c in 4
    {
      let own = key_of(four[${c}]);
      if (own > key) { key = own; id = i * 4u + ${c}u; }
    }
#end
  }
#endif
  let best = best_of(key, id, lane);
  let peak = value_of(best.x);
  var sum = 0.0;
#if SCALAR
  for (var i = group.x * CHUNK + lane; i < end; i += THREADS) { sum += exp(max(logits[row * V + i] - peak, -80.0)); }
#else
  for (var i = group.x * CHUNK / 4u + lane; i < end / 4u; i += THREADS) {
    let four = exp(max(logits[row * (V / 4u) + i] - peak, vec4<f32>(-80.0)));
    sum += four.x + four.y + (four.z + four.w);
  }
#endif
  sums[lane] = sum;
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    if (lane < half) { sums[lane] += sums[lane + half]; }
    workgroupBarrier();
  }
  if (lane == 0u) { parts[row * CHUNKS + group.x] = vec4<u32>(best, bitcast<u32>(sums[0]), 0u); }
}
