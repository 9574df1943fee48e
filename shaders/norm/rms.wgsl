// y[t] = x[t] / sqrt(mean(x[t]²) + EPS) * weight (+ residual[t])      x, y [T, D], weight [D], or RUNS times D in a row
// of x; one workgroup per run.
@group(0) @binding(0) var<storage, read> x: array<${VEC}>;
@group(0) @binding(1) var<storage, read> weight: array<${VEC}>;
@group(0) @binding(2) var<storage, read_write> y: array<${VEC}>;
#if RESIDUAL
@group(0) @binding(3) var<storage, read> residual: array<${VEC}>;
#endif

const WIDTH = ${WIDTH}u; // D in vectors

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {
  let lane = me.lane;
  let start = (group.x * ${RUNS}u + group.y) * WIDTH;
  var sum = ${VEC}(0.0);
  for (var i = lane; i < WIDTH; i += ${THREADS}u) {
    let v = x[start + i];
    sum += v * v;
  }
#if SCALAR
  let total = reduce_sum(sum, me);
#else
  let total = reduce_sum(dot(sum, vec4<f32>(1.0)), me);
#endif
  let scale = inverseSqrt(total * ${INVERSE_D} + ${EPS});
  for (var i = lane; i < WIDTH; i += ${THREADS}u) {
#if RESIDUAL
    y[start + i] = x[start + i] * scale * weight[i] + residual[start + i];
#else
    y[start + i] = x[start + i] * scale * weight[i];
#endif
  }
}
