// Merges the runs of attention_split: y[t, h] = Σ exp(m_s - m) o_s / Σ exp(m_s - m) l_s.   One workgroup per token and
// head.
@group(0) @binding(0) var<storage, read> partial: array<f32>;
@group(0) @binding(1) var<storage, read> positions: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const H = ${H}u;
const d = ${d}u;
const SPLIT = ${SPLIT}u;
const MAX_SPLITS = ${MAX_SPLITS}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let head = group.x;
  let token = group.y;
  let splits = positions[token] / SPLIT + 1u;
  let start = (token * MAX_SPLITS * H + head) * (d + 2u);
  let stride = H * (d + 2u);
  var peak = -1e30;
  for (var s = 0u; s < splits; s++) { peak = max(peak, partial[start + s * stride + d]); }
  var total = 0.0;
  for (var s = 0u; s < splits; s++) {
    total += exp(max(partial[start + s * stride + d] - peak, -80.0)) * partial[start + s * stride + d + 1u];
  }
  for (var i = lane; i < d; i += ${THREADS}u) {
    var sum = 0.0;
    for (var s = 0u; s < splits; s++) {
      let at = start + s * stride;
      // For an empty run no values were written: its sum of weights is zero, and its memory must not be read.
      if (partial[at + d + 1u] > 0.0) { sum += exp(max(partial[at + d] - peak, -80.0)) * partial[at + i]; }
    }
    y[(token * H + head) * d + i] = sum / total;
  }
}
