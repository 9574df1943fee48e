// y = CAP tanh(x / CAP), element by element.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> size: vec4<u32>; // elements, threads in x

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i >= size.x) { return; }
  // Beyond 15 tanh is 1 in f32, and some devices' tanh overflows far out.
  y[i] = ${CAP} * tanh(clamp(x[i] / ${CAP}, -15.0, 15.0));
}
