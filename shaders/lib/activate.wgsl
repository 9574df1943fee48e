fn activate(v: f32) -> f32 {
#if ACTIVATION == silu
  return v / (1.0 + exp(clamp(-v, -80.0, 80.0)));
#endif
#if ACTIVATION == gelu_tanh
  // 0.5 v (1 + tanh(u)) = v - v / (1 + exp(2u)). The argument is clamped because not every device overflows exp to
  // +inf.
  let u = 0.7978845608028654 * (v + 0.044715 * v * v * v);
  return v - v / (1.0 + exp(clamp(2.0 * u, -80.0, 80.0)));
#endif
#if ACTIVATION == relu2
  let positive = max(v, 0.0);
  return positive * positive;
#endif
#if ACTIVATION == sigmoid
  return 1.0 / (1.0 + exp(clamp(-v, -80.0, 80.0)));
#endif
}
