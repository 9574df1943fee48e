// The score of a raw product q·k: scaled and capped, or with ALIBI (Press et al., 2022) reduced in proportion to the
// distance.
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
// ALiBi's slopes, times ALIBI_FACTOR: powers of 2^(-8/n) for the first n = ALIBI_POWER heads, where n is the largest
// power of two up to H; for further heads the odd powers of that number's square root.
fn alibi_slope(head: u32) -> f32 {
  let n = ${ALIBI_POWER}.0;
  if (head < ${ALIBI_POWER}u) { return ${ALIBI_FACTOR} * exp2(-8.0 / n * f32(head + 1u)); }
  return ${ALIBI_FACTOR} * exp2(-4.0 / n * f32(2u * (head - ${ALIBI_POWER}u) + 1u));
}
#else
fn alibi_slope(head: u32) -> f32 { return 0.0; }
#endif
