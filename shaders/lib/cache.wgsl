// Four consecutive elements of a cache row, from f32 or from f16 pairs.
#if HALF_CACHE
fn key4(i: u32) -> vec4<f32> { let w = k_cache[i]; return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }
fn value4(i: u32) -> vec4<f32> { let w = v_cache[i]; return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }
#else
fn key4(i: u32) -> vec4<f32> { return k_cache[i]; }
fn value4(i: u32) -> vec4<f32> { return v_cache[i]; }
#endif

fn score(raw: f32) -> f32 {
#if SOFTCAP
  return ${CAP} * tanh(clamp(raw * ${SCALE} / ${CAP}, -15.0, 15.0));
#else
  return raw * ${SCALE};
#endif
}
