//! The scales of 256 weights, one for 16 of them, as multiples from −128 to 127 of one f16 number, as in GGUF's Q6_K.
//! They take 18 bytes:
//!
//! | bytes | content |
//! | --- | --- |
//! | 0, 1 | the f16 unit |
//! | 2 + 2 b + h | the multiple for half h of block b, plus 128 |
//!
//! An f16 number times 8 bits, and that times a code of 6 bits, are f32 numbers: nothing is rounded. The multiples are
//! stored without a sign because kernels on software devices read unsigned bytes with fewer instructions.

use super::{half_at, push_half};

/// The scales of up to 8 blocks of 32 weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepScales {
    /// The unit: an f16 number, of either sign.
    pub unit: f32,
    /// The multiple for each 16 weights.
    pub steps: [i8; 16],
}

impl StepScales {
    /// Bytes in the plane.
    pub(super) const BYTES: usize = 18;
    /// Bytes of the unit.
    pub(super) const UNIT_BYTES: usize = 2;

    /// The scale of 16 weights.
    pub fn scale(&self, group: usize) -> f32 {
        self.unit * f32::from(self.steps[group])
    }

    /// Appends the 18 bytes to the plane.
    pub(super) fn push(&self, plane: &mut Vec<u8>) {
        push_half(plane, self.unit);
        plane.extend(self.steps.map(|step| step as u8 ^ 128));
    }

    /// Number `index` of a row of the plane.
    pub(super) fn at(plane: &[u8], index: usize) -> Self {
        let bytes = &plane[index * Self::BYTES..][..Self::BYTES];
        Self { unit: half_at(bytes, 0), steps: std::array::from_fn(|group| (bytes[2 + group] ^ 128) as i8) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_multiple_has_its_place() {
        for seed in 0..16 {
            let scales = StepScales { unit: -0.25, steps: std::array::from_fn(|i| (seed * 16 + i) as u8 as i8) };
            let mut plane = vec![0; StepScales::BYTES];
            scales.push(&mut plane);
            assert_eq!((plane.len(), StepScales::at(&plane, 1)), (36, scales));
            assert_eq!(scales.scale(3), -0.25 * f32::from((seed * 16 + 3) as u8 as i8));
        }
    }
}
