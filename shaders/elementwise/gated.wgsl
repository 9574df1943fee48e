// y[t, f] = act(gate[t, f]) * up[t, f]      x [T, 2F]: gate, then up; y [T, F].
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> size: vec4<u32>; // T * F, threads in x

const F = ${F}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i >= size.x) { return; }
  let row = i / F;
  let column = i - row * F;
  let base = row * 2u * F + column;
  y[i] = activate(x[base]) * x[base + F];
}
