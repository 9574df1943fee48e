// The derivative of activate().
fn activate_slope(v: f32) -> f32 {
#if ACTIVATION == silu
  let s = 1.0 / (1.0 + exp(clamp(-v, -80.0, 80.0)));
  return s * (1.0 + v * (1.0 - s));
#endif
#if ACTIVATION == gelu_tanh
  // With s = sigmoid(2u): tanh(u) = 2s - 1 and 1 - tanh² = 4 s (1 - s).
  let s = 1.0 / (1.0 + exp(clamp(-1.5957691216057308 * (v + 0.044715 * v * v * v), -80.0, 80.0)));
  return s + 1.5957691216057308 * v * s * (1.0 - s) * (1.0 + 0.134145 * v * v);
#endif
#if ACTIVATION == relu2
  return 2.0 * max(v, 0.0);
#endif
#if ACTIVATION == sigmoid
  let s = 1.0 / (1.0 + exp(clamp(-v, -80.0, 80.0)));
  return s * (1.0 - s);
#endif
}
