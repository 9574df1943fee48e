// results = 1 + a b + a b, with b read by rows, then by columns: a check of a device's cooperative matrices. One
// workgroup of at least one subgroup, each of which computes the same.
const SIZE = ${SIZE}u;
const THREADS = ${THREADS}u;

@group(0) @binding(0) var<storage, read_write> results: array<f32>;

var<workgroup> a: array<f16, ${VALUES}>;
var<workgroup> b: array<f16, ${VALUES}>;
var<workgroup> b_columns: array<f16, ${VALUES}>;
var<workgroup> sums: array<f32, ${VALUES}>;

fn small(a: u32, b: u32) -> f16 { return f16(i32((a * 3u + b * 5u) % 7u) - 3); }

@compute @workgroup_size(${THREADS})
fn main(@builtin(local_invocation_index) lane: u32) {
  for (var i = lane; i < SIZE * SIZE; i += THREADS) {
    let row = i / SIZE;
    let column = i % SIZE;
    a[i] = small(row, column);
    b[i] = small(column, row + 1u);
    b_columns[column * SIZE + row] = small(column, row + 1u);
    sums[i] = 1.0;
  }
  workgroupBarrier();
  let left = coopLoadT<coop_mat${SIZE}x${SIZE}<f16, A>>(&a[0], SIZE);
  let by_rows = coopLoadT<coop_mat${SIZE}x${SIZE}<f16, B>>(&b[0], SIZE);
  let by_columns = coopLoad<coop_mat${SIZE}x${SIZE}<f16, B>>(&b_columns[0], SIZE);
  var sum = coopLoadT<coop_mat${SIZE}x${SIZE}<f32, C>>(&sums[0], SIZE);
  sum = coopMultiplyAdd(left, by_rows, sum);
  sum = coopMultiplyAdd(left, by_columns, sum);
  workgroupBarrier();
  coopStoreT(sum, &sums[0], SIZE);
  workgroupBarrier();
  for (var i = lane; i < SIZE * SIZE; i += THREADS) { results[i] = sums[i]; }
}
