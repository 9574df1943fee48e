//! What a checkpoint of a run holds: trained parameters, moments, counters and the loss scale.

use super::Trainer;
use crate::engine::{EngineError, LossScale};
use crate::{NamedArray, TrainedWeights};

impl Trainer {
    /// The state of loss scaling, with f16; checkpoints save and restore it.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }

    /// Restores the state that [`Trainer::loss_scale`] returned.
    ///
    /// # Errors
    /// A scale for a trainer without loss scaling, none for one with it, or an invalid scale.
    pub fn set_loss_scale(&mut self, loss_scale: Option<LossScale>) -> Result<(), EngineError> {
        if loss_scale.is_some() != self.options.f16 {
            let of = |there: bool| if there { "one" } else { "none" };
            return Err(EngineError::input(
                "loss scale",
                of(self.options.f16),
                of(loss_scale.is_some()),
                "resume with the recipe of the run",
            ));
        }
        self.loss_scale = loss_scale.map(LossScale::checked).transpose()?;
        Ok(())
    }

    /// The trained parameters.
    ///
    /// # Errors
    /// The device failed.
    pub async fn weights(&self) -> Result<TrainedWeights, EngineError> {
        self.arena.read(self.gpu.as_ref(), false).await
    }

    /// Loads what [`Trainer::weights`] returned; resets moments, gradients and the count of updates.
    ///
    /// # Errors
    /// The weights have other sizes.
    pub fn load_weights(&mut self, weights: &TrainedWeights) -> Result<(), EngineError> {
        self.arena.load(self.gpu.as_ref(), weights)?;
        (self.updates, self.micro_steps) = (0, 0);
        self.loss_scale = if self.options.f16 { Some(LossScale::new(self.options.loss_scale)?) } else { None };
        Ok(())
    }

    /// Moments and the number of updates, for a checkpoint.
    ///
    /// # Errors
    /// The device failed.
    pub async fn optimizer_state(&self) -> Result<Vec<NamedArray>, EngineError> {
        let mut arrays = Vec::new();
        for (name, state) in [("exp_avg", &self.arena.states.first), ("exp_avg_sq", &self.arena.states.second)] {
            let values = state.read(self.gpu.as_ref()).await?.f32().to_vec();
            arrays.push(NamedArray { name: name.into(), shape: vec![values.len()], values });
        }
        // Two f32 numbers hold each count exactly up to 2^48.
        let counts =
            [self.updates, self.micro_steps].iter().flat_map(|n| [(n >> 24) as f32, (n & 0xff_ffff) as f32]).collect();
        arrays.push(NamedArray { name: "counts".into(), shape: vec![4], values: counts });
        Ok(arrays)
    }

    /// Loads what [`Trainer::optimizer_state`] returned. Load the weights first, because loading them resets the
    /// moments.
    ///
    /// # Errors
    /// An array is missing or has another size.
    pub fn load_optimizer_state(&mut self, arrays: &[NamedArray]) -> Result<(), EngineError> {
        let find = |name: &str, len: usize| {
            let found = arrays.iter().find(|array| array.name == name && array.values.len() == len);
            found.ok_or_else(|| {
                EngineError::input(
                    "optimizer state",
                    format!("{len} numbers `{name}`"),
                    "others",
                    "resume with the recipe of the run",
                )
            })
        };
        let len = self.arena.states.first.shape()[0];
        for (name, state) in [("exp_avg", &self.arena.states.first), ("exp_avg_sq", &self.arena.states.second)] {
            state.write(self.gpu.as_ref(), 0, bytemuck::cast_slice(&find(name, len)?.values));
        }
        let counts = &find("counts", 4)?.values;
        let count = |high: f32, low: f32| ((high as u64) << 24) + low as u64;
        (self.updates, self.micro_steps) = (count(counts[0], counts[1]), count(counts[2], counts[3]));
        Ok(())
    }
}
