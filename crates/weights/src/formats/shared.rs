//! Scales and minima that 8 blocks of 32 weights share, as in GGUF's Q4_K and Q5_K: multiples from 0 to 63 of two f16
//! numbers. They take 16 bytes, half a bit a weight, and one load of a kernel:
//!
//! | word | content |
//! | --- | --- |
//! | 0 | f16 unit of the scales (low half), f16 unit of the minima |
//! | 1, 2 | byte b of word 1 + b / 4 for block b: the scale's multiple, and above it the low 2 bits of the minimum's |
//! | 3 | 4 bits for each block: the high bits of the minimum's multiple |
//!
//! An f16 number times 6 bits, and that times a code of 5 bits, are f32 numbers: nothing is rounded but the subtraction
//! of the minimum. Rejected: GGUF's order of the 96 bits, because there the last four blocks need other shifts than the
//! first four.

use super::{half_at, push_half};

/// Scales and minima of up to 8 blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SharedScales {
    /// The units of scales and minima: f16 numbers.
    pub units: (f32, f32),
    /// The multiples of each block's scale and minimum, from 0 to 63.
    pub steps: [(u8, u8); 8],
}

impl SharedScales {
    /// Bytes in the plane.
    pub(super) const BYTES: usize = 16;

    /// The scale and minimum of a block.
    pub fn pair(&self, block: usize) -> (f32, f32) {
        let (scale, min) = self.steps[block];
        (self.units.0 * f32::from(scale), self.units.1 * f32::from(min))
    }

    /// Appends the 16 bytes to the plane.
    pub(super) fn push(&self, plane: &mut Vec<u8>) {
        push_half(plane, self.units.0);
        push_half(plane, self.units.1);
        plane.extend(self.steps.map(|(scale, min)| scale | (min & 3) << 6));
        plane.extend(self.steps.as_chunks::<2>().0.iter().map(|[low, high]| low.1 >> 2 | high.1 >> 2 << 4));
    }

    /// Number `index` of a row of the plane.
    pub(super) fn at(plane: &[u8], index: usize) -> Self {
        let bytes = &plane[index * Self::BYTES..][..Self::BYTES];
        let step = |block: usize| {
            let (low, high) = (bytes[4 + block], bytes[12 + block / 2] >> (4 * (block % 2)) & 15);
            (low & 63, low >> 6 | high << 2)
        };
        Self { units: (half_at(bytes, 0), half_at(bytes, 1)), steps: std::array::from_fn(step) }
    }

    /// From the first 16 bytes of a block of GGUF's Q4_K or Q5_K.
    pub(crate) fn from_gguf(bytes: &[u8]) -> Self {
        let packed = &bytes[4..16];
        let step = |block: usize| {
            if block < 4 {
                return (packed[block] & 63, packed[block + 4] & 63);
            }
            let both = packed[block + 4];
            (both & 15 | packed[block - 4] >> 6 << 4, both >> 4 | packed[block] >> 6 << 4)
        };
        Self { units: (half_at(bytes, 0), half_at(bytes, 1)), steps: std::array::from_fn(step) }
    }

    /// Appends the first 16 bytes of a block of GGUF's Q4_K or Q5_K.
    pub(super) fn push_gguf(&self, out: &mut Vec<u8>) {
        push_half(out, self.units.0);
        push_half(out, self.units.1);
        let (first, last) = self.steps.split_at(4);
        out.extend(first.iter().zip(last).map(|(a, b)| a.0 | b.0 >> 4 << 6));
        out.extend(first.iter().zip(last).map(|(a, b)| a.1 | b.1 >> 4 << 6));
        out.extend(last.iter().map(|(scale, min)| scale & 15 | min << 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_its_place() {
        for seed in 0..64 {
            let steps =
                std::array::from_fn(|i| (((seed * 7 + 11 * i) % 64) as u8, ((seed * 5 + 23 * i + 1) % 64) as u8));
            let scales = SharedScales { units: (0.5, -3.0), steps };
            let (mut plane, mut gguf) = (vec![0; 16], Vec::new());
            scales.push(&mut plane);
            assert_eq!((plane.len(), SharedScales::at(&plane, 1)), (32, scales));
            scales.push_gguf(&mut gguf);
            assert_eq!((gguf.len(), SharedScales::from_gguf(&gguf)), (16, scales));
        }
    }
}
