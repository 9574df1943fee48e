// The score of a raw product: scaled, capped, and with ALIBI (Press et al., 2022) less the more distant the key is.
fn score(raw: f32, slope: f32, distance: u32) -> f32 {
#if SOFTCAP
  return ${CAP} * tanh(clamp(raw * ${SCALE} / ${CAP}, -15.0, 15.0));
#else
#if ALIBI
  return raw * ${SCALE} - slope * f32(distance);
#else
  return raw * ${SCALE};
#endif
#endif
}

#if ALIBI
// Powers of 2^(-8/n) for the n = ALIBI_POWER first heads, n the power of two at most H, and then every second power of
// its root.
fn alibi_slope(head: u32) -> f32 {
  let n = ${ALIBI_POWER}.0;
  if (head < ${ALIBI_POWER}u) { return ${ALIBI_FACTOR} * exp2(-8.0 / n * f32(head + 1u)); }
  return ${ALIBI_FACTOR} * exp2(-4.0 / n * f32(2u * (head - ${ALIBI_POWER}u) + 1u));
}
#else
fn alibi_slope(head: u32) -> f32 { return 0.0; }
#endif
