// dx (+)= s (g - mean(g) - x̂ mean(g∘x̂)), g = w∘dy, x̂ = s (x - mean(x))      x, dy, dx [T, D], weight [D]; one
// workgroup per row.
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
  let start = group.x * WIDTH;
  var sum = ${VEC}(0.0);
  for (var i = lane; i < WIDTH; i += ${THREADS}u) { sum += x[start + i]; }
  let mean = reduce_sum(total(sum), me) * ${INVERSE_D};
  var squares = ${VEC}(0.0);
  var pulls = ${VEC}(0.0);
  var products = ${VEC}(0.0);
  for (var i = lane; i < WIDTH; i += ${THREADS}u) {
    let v = x[start + i] - mean;
    let g = weight[i] * dy[start + i];
    squares += v * v;
    pulls += g;
    products += v * g;
  }
  let scale = inverseSqrt(reduce_sum(total(squares), me) * ${INVERSE_D} + ${EPS});
  let plain = reduce_sum(total(pulls), me) * ${INVERSE_D};
  let along = reduce_sum(total(products), me) * ${INVERSE_D} * scale * scale;
  for (var i = lane; i < WIDTH; i += ${THREADS}u) {
    let gradient = scale * (weight[i] * dy[start + i] - plain - (x[start + i] - mean) * along);
#if ADD
    dx[start + i] += gradient;
#else
    dx[start + i] = gradient;
#endif
  }
}
