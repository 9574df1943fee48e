//! A check that users can run on their own device and model: the norm of the gradient against the slope of the loss.
//!
//! The derivative of the loss in the direction of its gradient g is ‖g‖, and a central difference of two losses
//! measures that slope with the forward pass alone. A backward kernel that is wrong on some device or size shows as two
//! numbers that differ.

use super::{EngineError, Trainer, finite};
use crate::{MicroBatch, TrainedWeights};

/// The change of the loss, relative to the loss, that a step of the difference aims at: far above the rounding errors
/// of f32 losses, and small against the curvature.
const RELATIVE_CHANGE: f64 = 4e-3;

/// Largest relative difference of norm and slope that counts as agreement.
const TOLERANCE: f64 = 0.05;

/// The gradient at one point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradientCheck {
    /// Mean loss of the trained tokens there.
    pub loss: f64,
    /// The norm ‖g‖ that the backward pass gives.
    pub norm: f64,
    /// The slope of the loss along g: (L(θ + h·g/‖g‖) − L(θ − h·g/‖g‖)) / 2h.
    pub slope: f64,
    /// The distance h.
    pub distance: f64,
}

impl GradientCheck {
    /// Whether norm and slope agree within 5 %.
    pub fn agrees(&self) -> bool {
        (self.norm - self.slope).abs() <= TOLERANCE * self.norm.abs().max(self.slope.abs())
    }
}

impl Trainer {
    /// Checks the gradient of this micro-batch's mean loss at the current weights, and at a second point a small step
    /// down the slope (a new adapter's B is zero, and so is the gradient of its A; at the second point neither is).
    /// Dropout and embedding noise are off. Afterwards the weights are as before, and the optimizer's moments are
    /// reset.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub async fn check_gradients(&mut self, batch: &MicroBatch) -> Result<[GradientCheck; 2], EngineError> {
        let (dropout, neftune) = (std::mem::replace(&mut self.dropout, 0.0), self.options.neftune.take());
        self.steps.clear(); // they were recorded with dropout and noise
        let start = self.weights().await?;
        let checked = self.check_two_points(&start, batch).await;
        (self.dropout, self.options.neftune) = (dropout, neftune);
        self.steps.clear();
        self.load_weights(&start)?;
        checked
    }

    async fn check_two_points(
        &mut self,
        start: &TrainedWeights,
        batch: &MicroBatch,
    ) -> Result<[GradientCheck; 2], EngineError> {
        let (first, gradient) = self.check_at(start, batch).await?;
        let down = -4.0 * first.distance / first.norm.max(f64::MIN_POSITIVE);
        let (second, _) = self.check_at(&moved(start, &gradient, down), batch).await?;
        Ok([first, second])
    }

    async fn check_at(
        &mut self,
        weights: &TrainedWeights,
        batch: &MicroBatch,
    ) -> Result<(GradientCheck, TrainedWeights), EngineError> {
        self.load_weights(weights)?;
        self.clear_gradients();
        let loss = self.accumulate(batch, 1.0 / batch.target_count().max(1) as f64).await?;
        let gradient = self.gradients().await?;
        self.clear_gradients();
        let norm = finite(numbers(&gradient).map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt())?;
        if norm == 0.0 {
            let remedy = "train on other modules, or on examples with trained tokens";
            return Err(EngineError::input("gradients", "some that are not zero", "only zeros", remedy));
        }
        let distance = RELATIVE_CHANGE * loss.abs().max(0.1) / norm;
        let mut losses = [0.0; 2];
        for (loss, sign) in losses.iter_mut().zip([1.0, -1.0]) {
            self.load_weights(&moved(weights, &gradient, sign * distance / norm))?;
            let (sum, count) = self.evaluate(batch).await?;
            *loss = sum / count.max(1) as f64;
        }
        let slope = (losses[0] - losses[1]) / (2.0 * distance);
        Ok((GradientCheck { loss, norm, slope, distance }, gradient))
    }
}

/// All numbers of weights or gradients.
fn numbers(of: &TrainedWeights) -> Box<dyn Iterator<Item = f32> + '_> {
    match of {
        TrainedWeights::Adapter(adapter) => {
            Box::new(adapter.modules.values().flat_map(|module| module.a.iter().chain(&module.b).copied()))
        }
        TrainedWeights::Full(arrays) => Box::new(arrays.iter().flat_map(|array| array.values.iter().copied())),
    }
}

/// weights + factor · direction; both have the same layout.
fn moved(weights: &TrainedWeights, direction: &TrainedWeights, factor: f64) -> TrainedWeights {
    let mut step = numbers(direction);
    let mut add = |values: &mut Vec<f32>| {
        for value in values {
            *value = (f64::from(*value) + factor * f64::from(step.next().unwrap_or(0.0))) as f32;
        }
    };
    let mut moved = weights.clone();
    match &mut moved {
        TrainedWeights::Adapter(adapter) => adapter.modules.values_mut().for_each(|module| {
            add(&mut module.a);
            add(&mut module.b);
        }),
        TrainedWeights::Full(arrays) => arrays.iter_mut().for_each(|array| add(&mut array.values)),
    }
    moved
}
