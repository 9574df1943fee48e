// Four consecutive elements of a cache row, from f32, from pairs of f16, or from 8-bit or 4-bit codes in blocks of 32,
// whose scales follow all codes of the cache.
#if ELEMENT == f32
fn key4(i: u32) -> vec4<f32> { return k_cache[i]; }
fn value4(i: u32) -> vec4<f32> { return v_cache[i]; }
#endif
#if ELEMENT == f16
fn key4(i: u32) -> vec4<f32> { let w = k_cache[i]; return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }
fn value4(i: u32) -> vec4<f32> { let w = v_cache[i]; return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }
#endif
#if ELEMENT == q8_0
fn four(w: u32, scale: u32) -> vec4<f32> {
  let codes = vec4<i32>(bitcast<i32>(w << 24u), bitcast<i32>(w << 16u), bitcast<i32>(w << 8u), bitcast<i32>(w));
  return bitcast<f32>(scale) * vec4<f32>(codes >> vec4<u32>(24u));
}
fn key4(i: u32) -> vec4<f32> { return four(k_cache[i], k_cache[${SCALES}u + (i >> 3u)]); }
fn value4(i: u32) -> vec4<f32> { return four(v_cache[i], v_cache[${SCALES}u + (i >> 3u)]); }
#endif
#if ELEMENT == q4_0
fn four(w: u32, scale: u32) -> vec4<f32> {
  let codes = vec4<u32>(w, w >> 4u, w >> 8u, w >> 12u) & vec4<u32>(15u);
  return bitcast<f32>(scale) * (vec4<f32>(codes) - 8.0);
}
fn key4(i: u32) -> vec4<f32> { return four(k_cache[i >> 1u] >> ((i & 1u) * 16u), k_cache[${SCALES}u + (i >> 3u)]); }
fn value4(i: u32) -> vec4<f32> { return four(v_cache[i >> 1u] >> ((i & 1u) * 16u), v_cache[${SCALES}u + (i >> 3u)]); }
#endif
