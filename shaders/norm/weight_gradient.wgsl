// z = dy∘(x - m) / sqrt(mean((x - m)²) + EPS), m = mean(x) with MEAN, else 0      x, dy, z [T, D], or RUNS times D in a
// row; one workgroup per run.
@group(0) @binding(0) var<storage, read> x: array<${VEC}>;
@group(0) @binding(1) var<storage, read> dy: array<${VEC}>;
@group(0) @binding(2) var<storage, read_write> z: array<${VEC}>;

const WIDTH = ${WIDTH}u; // D in vectors

#if SCALAR
fn total(v: f32) -> f32 { return v; }
#else
fn total(v: vec4<f32>) -> f32 { return dot(v, vec4<f32>(1.0)); }
#endif

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {
  let lane = me.lane;
  let start = (group.x * ${RUNS}u + group.y) * WIDTH;
  var mean = 0.0;
#if MEAN
  var sum = ${VEC}(0.0);
  for (var i = lane; i < WIDTH; i += ${THREADS}u) { sum += x[start + i]; }
  mean = reduce_sum(total(sum), me) * ${INVERSE_D};
#endif
  var squares = ${VEC}(0.0);
  for (var i = lane; i < WIDTH; i += ${THREADS}u) {
    let v = x[start + i] - mean;
    squares += v * v;
  }
  let scale = inverseSqrt(reduce_sum(total(squares), me) * ${INVERSE_D} + ${EPS});
  for (var i = lane; i < WIDTH; i += ${THREADS}u) { z[start + i] = dy[start + i] * (x[start + i] - mean) * scale; }
}
