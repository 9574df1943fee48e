// y[t, n] = x[t, X(n)] act(gate[t, GATE(n)]), where X(n) = X_FIRST + n / X_RUN X_STEP + n % X_RUN, and GATE(n) the same
// of the gate. One invocation per element of y [T, N].
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> size: vec4<u32>; // T * N, threads in x, widths of x and gate

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i >= size.x) { return; }
  let t = i / ${N}u;
  let n = i % ${N}u;
  let from_x = t * size.z + ${X_FIRST}u + n / ${X_RUN}u * ${X_STEP}u + n % ${X_RUN}u;
  let from_gate = t * size.w + ${GATE_FIRST}u + n / ${GATE_RUN}u * ${GATE_STEP}u + n % ${GATE_RUN}u;
  y[i] = x[from_x] * activate(gate[from_gate]);
}
