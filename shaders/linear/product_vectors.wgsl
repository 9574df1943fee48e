// For software devices, where a barrier costs more than a load from the cache, and a load of four values hardly more
// than a load of one: RM x 4 results per invocation, over four of k at a time. A_ALONG_K, B_ALONG_K: the four values of
// a vector are consecutive along k, otherwise along m or n.
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;

const RM = ${RM}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
  let block = id.y * ${STRIDE}u + id.x;
  let across = (size[1] + 3u) / 4u;
  let row = block / across * RM;
  let column = block % across * 4u;
  if (row >= size[0]) { return; }
  let end = min((group.z + 1u) * size[3], size[2]);
#for q in RM_4
#for i in 4
  var sum_${q}_${i} = vec4<f32>(0.0);
#end
#end
  for (var k = group.z * size[3]; k < end; k += 4u) {
#for i in 4
#if B_ALONG_K
    let b_${i} = b[(size[7] + k * size[8] + min(column + ${i}u, size[1] - 1u) * size[9]) / 4u];
#else
    let right_${i} = b[(size[7] + (k + ${i}u) * size[8] + column * size[9]) / 4u];
#endif
#end
#if B_ALONG_K
#for i in 4
    let right_${i} = vec4<f32>(b_0[${i}], b_1[${i}], b_2[${i}], b_3[${i}]);
#end
#endif
#for q in RM_4
    {
#for i in 4
#if A_ALONG_K
      let left_${i} = a[(size[4] + min(row + ${q}u * 4u + ${i}u, size[0] - 1u) * size[5] + k * size[6]) / 4u];
#else
      let a_${i} = a[(size[4] + min(row + ${q}u * 4u, size[0] - 4u) * size[5] + (k + ${i}u) * size[6]) / 4u];
#endif
#end
#for i in 4
#if !A_ALONG_K
      let left_${i} = vec4<f32>(a_0[${i}], a_1[${i}], a_2[${i}], a_3[${i}]);
#endif
      sum_${q}_${i} += left_${i}.x * right_0 + left_${i}.y * right_1 + left_${i}.z * right_2 + left_${i}.w * right_3;
#end
    }
#end
  }
#for q in RM_4
#for i in 4
#for n in 4
  store(row + ${q}u * 4u + ${i}u, column + ${n}u, group.z, sum_${q}_${i}[${n}]);
#end
#end
#end
}
