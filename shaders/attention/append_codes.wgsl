// Writes the keys, or the values, of T tokens into a quantized cache, each into its position's row. Blocks of 32 values
// become 8-bit codes, where the largest magnitude is 127 steps, or 4-bit codes from -8 to 7, where it is -8. The scales
// follow the codes of the whole cache. x [T, K, d]; cache [rows, K, d]. One workgroup per token.
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> positions: array<u32>;
@group(0) @binding(2) var<storage, read> bases: array<u32>;
@group(0) @binding(3) var<storage, read_write> cache: array<u32>;
const BLOCKS = ${BLOCKS}u; // blocks per cache row

#if ELEMENT == q4_0
fn farther(a: f32, b: f32) -> f32 { return select(a, b, abs(b) > abs(a)); }
fn codes4(v: vec4<f32>) -> u32 {
  let c = vec4<u32>(clamp(round(v) + 8.0, vec4<f32>(0.0), vec4<f32>(15.0)));
  return c.x | (c.y << 4u) | (c.z << 8u) | (c.w << 12u);
}
#endif

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let token = group.x;
  let row = cache_row(bases[token], positions[token]);
  for (var block = lane; block < BLOCKS; block += ${THREADS}u) {
    let source = (token * BLOCKS + block) * 8u;
    let to = row * BLOCKS + block;
#for j in 8
    let v_${j} = x[source + ${j}u];
#end
#if ELEMENT == q8_0
    var most = vec4<f32>(0.0);
#for j in 8
    most = max(most, abs(v_${j}));
#end
    let peak = max(max(most.x, most.y), max(most.z, most.w));
    let inverse = select(127.0 / peak, 0.0, peak == 0.0);
#for j in 8
    {
      let c = vec4<i32>(round(v_${j} * inverse)) & vec4<i32>(255);
      cache[to * 8u + ${j}u] = bitcast<u32>(c.x | (c.y << 8u) | (c.z << 16u) | (c.w << 24u));
    }
#end
    cache[${SCALES}u + to] = bitcast<u32>(peak / 127.0);
#else
    var peak = 0.0;
#for j in 8
    peak = farther(farther(farther(farther(peak, v_${j}.x), v_${j}.y), v_${j}.z), v_${j}.w);
#end
    let inverse = select(-8.0 / peak, 0.0, peak == 0.0);
    cache[to * 4u] = codes4(v_0 * inverse) | (codes4(v_1 * inverse) << 16u);
    cache[to * 4u + 1u] = codes4(v_2 * inverse) | (codes4(v_3 * inverse) << 16u);
    cache[to * 4u + 2u] = codes4(v_4 * inverse) | (codes4(v_5 * inverse) << 16u);
    cache[to * 4u + 3u] = codes4(v_6 * inverse) | (codes4(v_7 * inverse) << 16u);
    cache[${SCALES}u + to] = bitcast<u32>(peak / -8.0);
#endif
  }
}
