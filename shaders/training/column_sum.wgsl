// FIRST: partial[run, c] = Σ x[r, c] (SQUARES: of x²) over the rows r of a run. Otherwise: y[c] (+)= Σ partial[run, c],
// in the order of the runs. One invocation per column (and run).
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> size: vec4<u32>; // columns, rows, rows of a run, runs

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let column = group.x * ${THREADS}u + lane;
  if (column >= size.x) { return; }
#if FIRST
  let start = group.y * size.z;
  let end = min(start + size.z, size.y);
#else
  let start = 0u;
  let end = size.w;
#endif
  var sum = 0.0;
  for (var row = start; row < end; row++) {
    let value = x[row * size.x + column];
#if SQUARES
    sum += value * value;
#else
    sum += value;
#endif
  }
#if ADD
  y[column] += sum;
#else
  y[group.y * size.x + column] = sum;
#endif
}
