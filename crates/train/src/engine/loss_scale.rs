//! Loss scaling: what the loss is multiplied by before it is differentiated, so that small gradients do not vanish in
//! f16.
//!
//! Dynamic, with the numbers of `torch.amp.GradScaler`: 65536 at first, doubled after 2000 good updates in a row,
//! halved when the norm of the gradients is not finite, and that update skipped. Unlike there, the same micro-batches
//! are then done again with the lower scale: a skipped batch would be lost to the run, whose schedule counts steps, and
//! every run would have to say how many it lost. Powers of two only: multiplying by one and dividing again changes no
//! bit.

use serde::{Deserialize, Serialize};

use super::EngineError;

/// The scale at first, as in PyTorch.
pub const INITIAL_LOSS_SCALE: f64 = 65536.0;
/// Good updates in a row after which it is doubled.
const GROWTH_INTERVAL: u64 = 2000;
/// Below this it is not halved: then it is not f16 that overflows.
const LEAST: f64 = 1.0;
/// Up to here it grows: 2²⁴ lifts what f32 tells from one to where f16 tells it from zero, and leaves losses far from
/// where f32 ends.
const MOST: f64 = 16_777_216.0;

/// The state of loss scaling between two updates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    /// Multiplies the loss.
    pub scale: f64,
    /// Updates since it was changed.
    pub good_updates: u64,
    /// Updates that were skipped, and done again, since the run began.
    pub skipped_updates: u64,
}

impl LossScale {
    /// A scale to begin with.
    ///
    /// # Errors
    /// One that is not a power of two from 1 to 2¹²⁰.
    pub fn new(scale: f64) -> Result<LossScale, EngineError> {
        LossScale { scale, good_updates: 0, skipped_updates: 0 }.checked()
    }

    /// Itself, if its scale can be one.
    ///
    /// # Errors
    /// As [`LossScale::new`].
    pub fn checked(self) -> Result<LossScale, EngineError> {
        let exponent = self.scale.log2();
        if self.scale.is_finite() && (0.0..=120.0).contains(&exponent) && exponent.fract() == 0.0 {
            return Ok(self);
        }
        Err(EngineError::input(
            "loss scale",
            "a power of two from 1 to 2^120, such as 65536",
            self.scale.to_string(),
            "correct it, or begin anew",
        ))
    }

    /// Notes an update whose gradients were finite.
    pub(super) fn good(&mut self) {
        self.good_updates += 1;
        if self.good_updates >= GROWTH_INTERVAL {
            self.good_updates = 0;
            self.scale = (2.0 * self.scale).min(MOST.max(self.scale));
        }
    }

    /// Notes an update whose gradients were not finite; false when a lower scale is no remedy.
    pub(super) fn overflown(&mut self) -> bool {
        if self.scale / 2.0 < LEAST {
            return false;
        }
        (self.scale, self.good_updates) = (self.scale / 2.0, 0);
        self.skipped_updates += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_slowly_and_falls_at_once() {
        let mut scale = LossScale::new(INITIAL_LOSS_SCALE).unwrap();
        (0..1999).for_each(|_| scale.good());
        assert_eq!((scale.scale, scale.good_updates), (65536.0, 1999));
        scale.good();
        assert_eq!((scale.scale, scale.good_updates), (131_072.0, 0));
        scale.good();
        assert!(scale.overflown());
        assert_eq!(scale, LossScale { scale: 65536.0, good_updates: 0, skipped_updates: 1 });
        (0..16).for_each(|_| assert!(scale.overflown()));
        assert_eq!((scale.scale, scale.overflown()), (1.0, false));
        (0..2000 * 40).for_each(|_| scale.good());
        assert_eq!(scale.scale, MOST);
        let mut high = LossScale::new(2f64.powi(30)).unwrap();
        (0..2000).for_each(|_| high.good());
        assert_eq!(high.scale, 2f64.powi(30), "a high one does not fall by growing");
    }

    #[test]
    fn only_powers_of_two_are_scales() {
        for bad in [0.0, -2.0, 0.5, 3.0, 65535.0, f64::NAN, f64::INFINITY, 2f64.powi(121)] {
            assert!(LossScale::new(bad).unwrap_err().to_string().contains("power of two"), "{bad}");
        }
    }
}
