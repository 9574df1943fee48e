//! Loss scaling: the loss is multiplied by a factor before differentiation, so that small gradients do not underflow in
//! f16.
//!
//! The scale is dynamic, with the constants of `torch.amp.GradScaler`: it starts at 65536, doubles after 2000 good
//! updates in a row, and halves when the norm of the gradients is not finite; that update is skipped. Unlike in
//! PyTorch, the skipped micro-batches are then repeated with the lower scale: the schedule counts steps, so a run would
//! otherwise miss these batches and have to report how many. Scales are powers of two, so that multiplying and dividing
//! again changes no bit.

use serde::{Deserialize, Serialize};

use super::EngineError;

/// The initial scale, as in PyTorch.
pub const INITIAL_LOSS_SCALE: f64 = 65536.0;
/// Good updates in a row after which the scale doubles.
const GROWTH_INTERVAL: u64 = 2000;
/// The scale is not halved below this: overflow at this scale is not caused by f16.
const LEAST: f64 = 1.0;
/// The scale does not grow beyond this: 2²⁴ lifts gradients from 2⁻⁴⁸ on to f16's smallest number, 2⁻²⁴, and keeps
/// losses far from f32's largest number.
const MOST: f64 = 16_777_216.0;

/// The state of loss scaling between two updates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    /// The factor on the loss.
    pub scale: f64,
    /// Good updates since the scale last changed.
    pub good_updates: u64,
    /// Updates skipped, and repeated, since the run began.
    pub skipped_updates: u64,
}

impl LossScale {
    /// Starts with this scale.
    ///
    /// # Errors
    /// The scale is not a power of two from 1 to 2¹²⁰.
    pub fn new(scale: f64) -> Result<LossScale, EngineError> {
        LossScale { scale, good_updates: 0, skipped_updates: 0 }.checked()
    }

    /// Returns the state if its scale is valid.
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
            "correct it, or start a new run",
        ))
    }

    /// Records an update with finite gradients.
    pub(super) fn record_success(&mut self) {
        self.good_updates += 1;
        if self.good_updates >= GROWTH_INTERVAL {
            self.good_updates = 0;
            self.scale = (2.0 * self.scale).min(MOST.max(self.scale));
        }
    }

    /// Records an update with gradients that are not finite; returns false when lowering the scale cannot help.
    pub(super) fn record_overflow(&mut self) -> bool {
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
        (0..1999).for_each(|_| scale.record_success());
        assert_eq!((scale.scale, scale.good_updates), (65536.0, 1999));
        scale.record_success();
        assert_eq!((scale.scale, scale.good_updates), (131_072.0, 0));
        scale.record_success();
        assert!(scale.record_overflow());
        assert_eq!(scale, LossScale { scale: 65536.0, good_updates: 0, skipped_updates: 1 });
        (0..16).for_each(|_| assert!(scale.record_overflow()));
        assert_eq!((scale.scale, scale.record_overflow()), (1.0, false));
        (0..2000 * 40).for_each(|_| scale.record_success());
        assert_eq!(scale.scale, MOST);
        let mut high = LossScale::new(2f64.powi(30)).unwrap();
        (0..2000).for_each(|_| high.record_success());
        assert_eq!(high.scale, 2f64.powi(30), "a high one does not fall by growing");
    }

    #[test]
    fn only_powers_of_two_are_scales() {
        for bad in [0.0, -2.0, 0.5, 3.0, 65535.0, f64::NAN, f64::INFINITY, 2f64.powi(121)] {
            assert!(LossScale::new(bad).unwrap_err().to_string().contains("power of two"), "{bad}");
        }
    }
}
