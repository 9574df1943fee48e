// Rounds activations to int8 with one scale per block of 32: codes [T, K / 4] of four int8 each; scales [T, K / 32]: d,
// d Σ of the first 16 codes, d Σ of the other 16, d Σ of all. One invocation per block. HALVES_SWAPPED: the bytes of a
// word are in the order 2, 3, 0, 1.
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> codes: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> scales: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> size: vec4<u32>; // blocks, invocations in x

fn sum4(v: vec4<i32>) -> i32 { return v.x + v.y + v.z + v.w; }
fn pack4(v: vec4<i32>) -> u32 {
#if HALVES_SWAPPED
  let t = v.zwxy & vec4<i32>(255);
#else
  let t = v & vec4<i32>(255);
#endif
  return u32(t.x) | (u32(t.y) << 8u) | (u32(t.z) << 16u) | (u32(t.w) << 24u);
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let block = id.y * size.y + id.x;
  if (block >= size.x) { return; }
  var most = vec4<f32>(0.0);
#for i in 8
  let v_${i} = x[block * 8u + ${i}u];
  most = max(most, abs(v_${i}));
#end
  let peak = max(max(most.x, most.y), max(most.z, most.w));
  let d = peak / 127.0;
  let inverse = select(127.0 / peak, 0.0, peak == 0.0);
#for i in 8
  let q_${i} = vec4<i32>(round(v_${i} * inverse));
#end
  codes[block * 2u] = vec4<u32>(pack4(q_0), pack4(q_1), pack4(q_2), pack4(q_3));
  codes[block * 2u + 1u] = vec4<u32>(pack4(q_4), pack4(q_5), pack4(q_6), pack4(q_7));
  let low = sum4(q_0 + q_1 + q_2 + q_3);
  let high = sum4(q_4 + q_5 + q_6 + q_7);
  scales[block] = vec4<f32>(d, d * f32(low), d * f32(high), d * f32(low + high));
}
