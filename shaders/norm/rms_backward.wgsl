// dx (+)= s w∘dy - x s³ mean(x∘w∘dy), s = 1 / sqrt(mean(x²) + EPS)      x, dy, dx [T, D], weight [D], or RUNS times D
// in a row; one workgroup per run.
@group(0) @binding(0) var<storage, read> x: array<${VEC}>;
@group(0) @binding(1) var<storage, read> weight: array<${VEC}>;
@group(0) @binding(2) var<storage, read> dy: array<${VEC}>;
@group(0) @binding(3) var<storage, read_write> dx: array<${VEC}>;

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
  var squares = ${VEC}(0.0);
  var products = ${VEC}(0.0);
  for (var i = lane; i < WIDTH; i += ${THREADS}u) {
    let v = x[start + i];
    squares += v * v;
    products += v * weight[i] * dy[start + i];
  }
  let square = reduce_sum(total(squares), me);
  let product = reduce_sum(total(products), me);
  let scale = inverseSqrt(square * ${INVERSE_D} + ${EPS});
  let along = product * ${INVERSE_D} * scale * scale * scale;
  for (var i = lane; i < WIDTH; i += ${THREADS}u) {
    let gradient = scale * weight[i] * dy[start + i] - x[start + i] * along;
#if ADD
    dx[start + i] += gradient;
#else
    dx[start + i] = gradient;
#endif
  }
}
