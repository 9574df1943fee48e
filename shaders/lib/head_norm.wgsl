#if QK_NORM
// Normalisation of the heads of queries and keys, shared by rope and attention_decode. WIDE is the number of values in
// an element of qkv. QK_WHOLE: all heads together, as one row; QK_MEAN: the mean is subtracted first; QK_EACH: every
// head has its own weights.
struct HeadNorm { mean: f32, scale: f32 }

fn head_norm(start: u32, count: u32, me: Invocation) -> HeadNorm {
  var mean = 0.0;
#if QK_MEAN
  var sum = 0.0;
  for (var i = me.lane; i < count; i += ${THREADS}u) { sum += total(qkv[start + i]); }
  mean = reduce_sum(sum, me) / f32(count * WIDE);
#endif
  var squares = 0.0;
  for (var i = me.lane; i < count; i += ${THREADS}u) {
    let v = qkv[start + i] - mean;
    squares += total(v * v);
  }
  let variance = reduce_sum(squares, me) / f32(count * WIDE);
  return HeadNorm(mean, inverseSqrt(variance + ${EPS}));
}
#endif
