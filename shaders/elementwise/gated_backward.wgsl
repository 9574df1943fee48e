// dx[t, f] = dy up act'(gate), dx[t, F + f] = dy act(gate)      x, dx [T, 2F]: gate, then up; dy [T, F].
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> dx: array<f32>;
@group(0) @binding(3) var<storage, read> size: vec4<u32>; // T * F, threads in x

const F = ${F}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i >= size.x) { return; }
  let row = i / F;
  let base = row * 2u * F + i - row * F;
  let gate = x[base];
  dx[base] = dy[i] * x[base + F] * activate_slope(gate);
  dx[base + F] = dy[i] * activate(gate);
}
