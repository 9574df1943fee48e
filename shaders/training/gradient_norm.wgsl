// partial[FIRST + part] = Σ (gradient · hyper[7])² over one of PARTS runs of a window of the arena; hyper[7] is the
// inverse of the loss scale.   One workgroup per run.
@group(0) @binding(0) var<storage, read> gradients: array<f32>;
@group(0) @binding(1) var<storage, read_write> partial: array<f32>;
@group(0) @binding(2) var<storage, read> hyper: array<f32>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {
  let lane = me.lane;
  var sum = 0.0;
  for (var i = group.x * ${PART}u + lane; i < min((group.x + 1u) * ${PART}u, ${N}u); i += ${THREADS}u) {
    let g = gradients[i] * hyper[7];
    sum += g * g;
  }
  sum = reduce_sum(sum, me);
  if (lane == 0u) { partial[${FIRST}u + group.x] = sum; }
}
