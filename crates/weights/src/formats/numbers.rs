//! Conversion of f16 numbers and 4-bit codes to and from bytes of planes.

use half::slice::HalfFloatSliceExt;

use super::Unrepresentable;

/// The `i`-th f16 of a plane, as f32.
pub(crate) fn half_at(plane: &[u8], i: usize) -> f32 {
    half::f16::from_le_bytes([plane[2 * i], plane[2 * i + 1]]).to_f32()
}

/// Little-endian f16 bytes to `f32`, through a stack buffer so that the processor's conversion instruction is used if
/// there is one.
pub(crate) fn halves_to_f32(bytes: &[u8], out: &mut [f32]) {
    let mut halves = [half::f16::ZERO; 256];
    for (bytes, out) in bytes.chunks(512).zip(out.chunks_mut(256)) {
        let halves = &mut halves[..out.len()];
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = half::f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(out);
    }
}

/// Appends `values` rounded to f16; fails with the index of the first that overflows.
pub(crate) fn push_halves(values: &[f32], plane: &mut Vec<u8>) -> Result<(), usize> {
    let mut halves = [half::f16::ZERO; 256];
    for (number, values) in values.chunks(256).enumerate() {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        if let Some(index) = halves.iter().position(|half| !half.is_finite()) {
            return Err(number * 256 + index);
        }
        let start = plane.len();
        plane.resize(start + 2 * halves.len(), 0);
        for (bytes, half) in plane[start..].as_chunks_mut::<2>().0.iter_mut().zip(halves) {
            *bytes = half.to_le_bytes();
        }
    }
    Ok(())
}

/// Appends 32 codes of 4 bits: byte j holds q\[j\] and q\[j + 16\].
pub(crate) fn push_nibbles(q: &[u8; 32], plane: &mut Vec<u8>) {
    plane.extend((0..16).map(|j| q[j] | q[j + 16] << 4));
}

/// Appends a value already rounded to f16.
pub(crate) fn push_half(plane: &mut Vec<u8>, value: f32) {
    plane.extend_from_slice(&half::f16::from_f32(value).to_le_bytes());
}

/// `value` rounded to the nearest f16, or `None` where that overflows.
pub(crate) fn round_half(value: f32) -> Option<f32> {
    let rounded = half::f16::from_f32(value).to_f32();
    rounded.is_finite().then_some(rounded)
}

/// The least f16 above zero.
const LEAST_HALF: f32 = 1.0 / 16_777_216.0;
/// Below this f16 has so few bits that a unit rounded down would leave its largest multiple short of the largest scale.
const LEAST_ROUNDED: f32 = 64.0 * LEAST_HALF;

/// The unit of scales that are stored as its multiples: `exact`, not negative, as an f16 number, rounded up where f16
/// has few bits; `None` when it overflows f16.
pub(crate) fn rounded_unit(exact: f32) -> Option<f32> {
    if exact < LEAST_ROUNDED { Some((exact / LEAST_HALF).ceil() * LEAST_HALF) } else { round_half(exact) }
}

/// The value of the largest magnitude, with its index: it is reported when a scale overflows.
pub(crate) fn peak_of(values: &[f32]) -> Unrepresentable {
    let mut peak = Unrepresentable { index: 0, value: 0.0 };
    for (index, &value) in values.iter().enumerate() {
        if value.abs() > peak.value.abs() {
            peak = Unrepresentable { index, value };
        }
    }
    peak
}
