// y[r, ·] = row r of x in f16, two per word, divided by the power of two that scales its largest value to 2^14 … 2^15.
// That power, in f32, is the last word of the row. Infinities and NaNs are preserved and do not count as the largest
// value. What follows W is zero.   One workgroup per row.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
@group(0) @binding(2) var<storage, read> size: vec4<u32>; // rows, workgroups in x

const W = ${W}u;
const WORDS = ${WORDS}u;

// Rounds to the 11 bits of an f16, to nearest even, so that the device's own conversion is exact. Values that would
// round up to 2^128 are clamped.
fn rounded(v: f32, inverse: f32, most: f32) -> f32 {
  let bits = bitcast<u32>(clamp(v * inverse, -most, most));
  return bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
}

fn is_finite(v: f32) -> bool { return (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u; }

// The f16 bits of an infinity or a NaN.
fn special(v: f32) -> u32 {
  let bits = bitcast<u32>(v);
  return ((bits >> 16u) & 0x8000u) | select(0x7c00u, 0x7e00u, (bits & 0x7fffffu) != 0u);
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, me: Invocation) {
  let lane = me.lane;
  let row = min(group.y * size.y + group.x, size.x - 1u);
  var peak = 0.0;
  for (var i = lane; i < W; i += ${THREADS}u) {
    let v = x[row * W + i];
    peak = max(peak, select(0.0, abs(v), is_finite(v)));
  }
  peak = reduce_max(peak, me);
  // The biased exponent of the row's largest value, at least that of 2^-100, so that the power and its inverse are
  // normal numbers.
  let exponent = max(bitcast<u32>(peak) >> 23u, 27u);
  let inverse = bitcast<f32>((268u - exponent) << 23u);
  let most = select(32768.0, 32752.0, exponent == 254u);
  for (var i = lane; i < WORDS - 1u; i += ${THREADS}u) {
    var low = 0.0;
    var high = 0.0;
    if (2u * i < W) { low = x[row * W + 2u * i]; }
    if (2u * i + 1u < W) { high = x[row * W + 2u * i + 1u]; }
    let fine = vec2<bool>(is_finite(low), is_finite(high));
    let pair = vec2<f32>(rounded(low, inverse, most), rounded(high, inverse, most));
    var word = pack2x16float(select(vec2<f32>(0.0), pair, fine));
    if (!fine.x) { word |= special(low); }
    if (!fine.y) { word |= special(high) << 16u; }
    y[row * WORDS + i] = word;
  }
  if (lane == 0u) { y[row * WORDS + WORDS - 1u] = (exponent - 14u) << 23u; }
}
