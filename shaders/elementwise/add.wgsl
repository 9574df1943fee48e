// y = a + b, element by element.
@group(0) @binding(0) var<storage, read> a: array<${VEC}>;
@group(0) @binding(1) var<storage, read> b: array<${VEC}>;
@group(0) @binding(2) var<storage, read_write> y: array<${VEC}>;
@group(0) @binding(3) var<storage, read> size: vec4<u32>; // elements in vectors, threads in x

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * size.y + id.x;
  if (i < size.x) { y[i] = a[i] + b[i]; }
}
