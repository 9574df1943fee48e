// y = act(x), element by element; SLOPE: y = act'(x) dy.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> size: vec4<u32>; // elements, threads in x
#if SLOPE
@group(0) @binding(3) var<storage, read> dy: array<f32>;
#endif

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i >= size.x) { return; }
#if SLOPE
  y[i] = activate_slope(x[i]) * dy[i];
#else
  y[i] = activate(x[i]);
#endif
}
