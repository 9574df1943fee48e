//! Gradients, and the updates that they make.

use bayan_tensor::ops::Hyper;

use super::Trainer;
use crate::TrainedWeights;
use crate::engine::EngineError;

impl Trainer {
    /// Calls [`Trainer::update`] and returns [`Trainer::gradient_norm`]. `None` means, with f16, that the gradients
    /// were not finite: nothing was updated, the loss scale is now lower, and the caller must repeat the micro-batches.
    ///
    /// # Errors
    /// As those of the two methods.
    pub async fn try_update(&mut self, hyper: &Hyper) -> Result<Option<f64>, EngineError> {
        self.update(hyper)?;
        let norm = self.gradient_norm().await;
        let Some(loss_scale) = &mut self.loss_scale else { return norm.map(Some) };
        match norm {
            Ok(norm) => {
                loss_scale.record_success();
                Ok(Some(norm))
            }
            Err(EngineError::NotFinite { .. }) if loss_scale.record_overflow() => {
                self.updates -= 1;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Updates the trained parameters with the accumulated gradients and clears them. The trainer sets
    /// [`Hyper::update`] and [`Hyper::loss_scale`] itself.
    ///
    /// # Errors
    /// The trainer has no device.
    pub fn update(&mut self, hyper: &Hyper) -> Result<(), EngineError> {
        let (Some(gpu), Some(optimizer)) = (&self.gpu, &self.optimizer) else {
            return Err(EngineError::input("trainer", "a device to update on", "none", "open one"));
        };
        self.updates += 1;
        let numbers = Hyper { update: self.updates, loss_scale: self.loss_factor(), ..*hyper }.numbers();
        self.hyper.write(Some(gpu), 0, bytemuck::cast_slice(&numbers));
        optimizer.submit(gpu, 0, &[]);
        self.arena.clear_gradients(Some(gpu));
        Ok(())
    }

    /// The norm of the gradients before clipping at the last update. A norm that is not finite is an error; that update
    /// changed nothing.
    ///
    /// # Errors
    /// The device failed, or the norm is not finite.
    pub async fn gradient_norm(&self) -> Result<f64, EngineError> {
        let values = self.norm.read(self.gpu.as_ref()).await?;
        let norm = f64::from(values.f32()[0]);
        if norm.is_finite() {
            Ok(norm)
        } else {
            Err(EngineError::NotFinite { what: "the norm of the gradients".into() })
        }
    }

    /// Sets the gradients to zero.
    pub fn clear_gradients(&self) {
        self.arena.clear_gradients(self.gpu.as_ref());
    }

    /// The gradients accumulated so far, in the layout of the trained parameters.
    ///
    /// # Errors
    /// The device failed.
    pub async fn gradients(&self) -> Result<TrainedWeights, EngineError> {
        let mut gradients = self.arena.read(self.gpu.as_ref(), true).await?;
        let unscale = (1.0 / self.loss_factor()) as f32;
        let divide = |values: &mut Vec<f32>| values.iter_mut().for_each(|v| *v *= unscale);
        match &mut gradients {
            TrainedWeights::Adapter(adapter) => adapter.modules.values_mut().for_each(|module| {
                divide(&mut module.a);
                divide(&mut module.b);
            }),
            TrainedWeights::Full(arrays) => arrays.iter_mut().for_each(|array| divide(&mut array.values)),
        }
        Ok(gradients)
    }

    /// The first tensor with NaN or infinity, or otherwise the first whose gradient has one, by PEFT's or Hugging
    /// Face's name.
    ///
    /// # Errors
    /// The device failed.
    pub async fn not_finite(&self) -> Result<Option<String>, EngineError> {
        let bad = |values: &[f32]| values.iter().any(|v| !v.is_finite());
        let first = |of: &TrainedWeights| match of {
            TrainedWeights::Adapter(adapter) => adapter.modules.iter().find_map(|(name, m)| {
                let (a, b) = bayan_models::tensor_names(name);
                bad(&m.a).then_some(a).or(bad(&m.b).then_some(b))
            }),
            TrainedWeights::Full(arrays) => {
                arrays.iter().find(|array| bad(&array.values)).map(|array| array.name.clone())
            }
        };
        if let Some(name) = first(&self.weights().await?) {
            return Ok(Some(name));
        }
        Ok(first(&self.gradients().await?).map(|name| format!("the gradient of {name}")))
    }
}
