// For software devices, where a barrier costs more than a load from the cache: RM x 4 results per invocation, read
// directly, one of k at a time.
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;

const RM = ${RM}u;
const RN = ${RN}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
  let block = id.y * ${STRIDE}u + id.x;
  let across = (size[1] + RN - 1u) / RN;
  let row = block / across * RM;
  let column = block % across * RN;
  if (row >= size[0]) { return; }
  let end = min((group.z + 1u) * size[3], size[2]);
#for m in RM
  let left_${m} = size[4] + min(row + ${m}u, size[0] - 1u) * size[5];
  var sum_${m} = vec4<f32>(0.0);
#end
  let last = size[1] - 1u;
  let right = size[7] + min(vec4<u32>(column, column + 1u, column + 2u, column + 3u), vec4<u32>(last)) * size[9];
  for (var k = group.z * size[3]; k < end; k++) {
    let at = right + k * size[8];
    let factors = vec4<f32>(b[at.x], b[at.y], b[at.z], b[at.w]);
#for m in RM
    sum_${m} += a[left_${m} + k * size[6]] * factors;
#end
  }
  var sums: array<f32, ${RM_RN}>;
#for m in RM
  sums[${m}u * RN] = sum_${m}.x;
  sums[${m}u * RN + 1u] = sum_${m}.y;
  sums[${m}u * RN + 2u] = sum_${m}.z;
  sums[${m}u * RN + 3u] = sum_${m}.w;
#end
  for (var i = 0u; i < RM * RN; i++) { store(row + i / RN, column + i % RN, group.z, sums[i]); }
}
