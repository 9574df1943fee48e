// Replaces logits[r, c] by weights[r] (softmax - 1 at the target), or by 0 where the target is ignored (all bits set).
// One workgroup per row.
@group(0) @binding(0) var<storage, read_write> logits: array<f32>;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read> statistics: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;

const C = ${C}u;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.x;
  let known = statistics[row];
  let hit = targets[row] - ${OFFSET}u;
  let weight = select(weights[row], 0.0, targets[row] == 0xffffffffu);
  for (var i = lane; i < C; i += ${THREADS}u) {
    let at = row * C + i;
    let value = logits[at];
    var gradient = weight * (exp(max(value - known.x, -80.0)) / known.y - select(0.0, 1.0, i == hit));
#if SOFTCAP
    gradient *= 1.0 - (value / ${CAP}) * (value / ${CAP});
#endif
    logits[at] = gradient;
  }
}
