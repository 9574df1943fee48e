// The gradient of x, or of the gate (OF_GATE), of elementwise/gate_columns.wgsl. One invocation per element of it; with
// ADD only for the N columns of a row that were read, which are added to.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> into: array<f32>;
@group(0) @binding(4) var<storage, read> size: vec4<u32>; // T * COLUMNS, threads in x, widths of x and gate

const N = ${N}u;

fn slope(t: u32, n: u32) -> f32 {
  let from_x = t * size.z + ${X_FIRST}u + n / ${X_RUN}u * ${X_STEP}u + n % ${X_RUN}u;
  let from_gate = t * size.w + ${GATE_FIRST}u + n / ${GATE_RUN}u * ${GATE_STEP}u + n % ${GATE_RUN}u;
#if OF_GATE
  return dy[t * N + n] * x[from_x] * activate_slope(gate[from_gate]);
#else
  return dy[t * N + n] * activate(gate[from_gate]);
#endif
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i >= size.x) { return; }
  let t = i / ${COLUMNS}u;
  let column = i % ${COLUMNS}u;
#if OF_GATE
  let width = size.w;
#else
  let width = size.z;
#endif
#if ADD
  into[t * width + ${OWN_FIRST}u + column / ${OWN_RUN}u * ${OWN_STEP}u + column % ${OWN_RUN}u] += slope(t, column);
#else
  var value = 0.0;
  if (column >= ${OWN_FIRST}u) {
    let after = column - ${OWN_FIRST}u;
    let n = after / ${OWN_STEP}u * ${OWN_RUN}u + after % ${OWN_STEP}u;
    if (after % ${OWN_STEP}u < ${OWN_RUN}u && n < N) { value = slope(t, n); }
  }
  into[t * width + column] = value;
#endif
}
