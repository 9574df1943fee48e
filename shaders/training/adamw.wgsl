// One AdamW update of a flat arena. hyper: 1 - lr decay, beta1, beta2, eps, lr / (1 - beta1^t), √(1 - beta2^t), limit
// of the norm. Weight decay applies to the first DECAYED values.
@group(0) @binding(0) var<storage, read> gradients: array<f32>;
@group(0) @binding(1) var<storage, read> norm: array<f32>;
@group(0) @binding(2) var<storage, read> hyper: array<f32>;
@group(0) @binding(3) var<storage, read_write> parameters: array<f32>;
@group(0) @binding(4) var<storage, read_write> first: array<f32>;
@group(0) @binding(5) var<storage, read_write> second: array<f32>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.y * ${STRIDE}u + id.x;
  // All exponent bits are set in an infinity or a NaN: such a step must not change the parameters.
  if (i >= ${N}u || (bitcast<u32>(norm[0]) & 0x7f800000u) == 0x7f800000u) { return; }
  let g = gradients[i] * norm[1];
  let m = hyper[1] * first[i] + (1.0 - hyper[1]) * g;
  let v = hyper[2] * second[i] + (1.0 - hyper[2]) * g * g;
  first[i] = m;
  second[i] = v;
  let kept = select(1.0, hyper[0], i < ${DECAYED}u) * parameters[i];
  parameters[i] = kept - hyper[4] * m / (sqrt(v) / hyper[5] + hyper[3]);
}
