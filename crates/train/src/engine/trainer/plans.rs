//! Recorded steps: each shape of a micro-batch has a plan, and the plans share one pool of activations.

use std::sync::Arc;

use bayan_models::{Cache, CacheFormat, CacheShape, Decoder, LoraPair};
use bayan_tensor::State;
use bayan_tensor::ops::Dropout;

use super::Trainer;
use super::preference::pairs_of;
use crate::MicroBatch;
use crate::engine::EngineError;
use crate::engine::arena::Arena;
use crate::engine::step::{LossInputs, PackedBatch, Shape, Step, StepKind, StepResult, rounded};
use crate::rng::split_mix;

/// Name under which the LoRA pairs are attached.
pub(super) const NAME: &str = "trained";

/// Recorded steps that are cached. They share the memory of their activations.
const PLANS: usize = 24;

impl Trainer {
    /// Reserves the memory of a training step over a batch of this shape with at least `trained` trained tokens, so
    /// that smaller batches allocate nothing more.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub fn reserve(&mut self, batch: &MicroBatch, trained: usize, preference: bool) -> Result<(), EngineError> {
        let (kind, pairs) =
            if preference { (StepKind::Preference, pairs_of(batch)?) } else { (StepKind::Supervised, 0) };
        let packed = PackedBatch::new(batch, self.options.context, self.decoder.sizes().vocab_size)?;
        let mut shape = packed.shape(kind, pairs);
        shape.rows = shape.rows.max(rounded(trained.max(1), 16));
        self.prepare(shape)
    }

    /// Runs the step of this batch, which is recorded if its shape is new.
    pub(super) async fn run(
        &mut self,
        batch: &MicroBatch,
        kind: StepKind,
        loss_inputs: &LossInputs,
    ) -> Result<StepResult, EngineError> {
        let pairs = if let LossInputs::Preference(reference, ..) = loss_inputs { reference.len() } else { 0 };
        let packed = PackedBatch::new(batch, self.options.context, self.decoder.sizes().vocab_size)?;
        if packed.count == 0 {
            return Err(EngineError::input(
                "micro-batch",
                "at least one trained token",
                "none",
                "drop examples without any, or train on all tokens",
            ));
        }
        if matches!(kind, StepKind::Supervised | StepKind::Preference) {
            let mut state = self.options.seed ^ self.micro_steps.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let seed = (split_mix(&mut state) >> 32) as u32;
            self.seed.write(self.gpu.as_ref(), 0, bytemuck::bytes_of(&seed));
            self.micro_steps += 1;
        }
        self.prepare(packed.shape(kind, pairs))?;
        match self.steps.last() {
            Some(step) => step.run(self.gpu.as_ref(), &packed, loss_inputs).await,
            None => Ok(StepResult::default()),
        }
    }

    /// Records the step of this shape, or moves the cached step to the end of the list.
    pub(super) fn prepare(&mut self, shape: Shape) -> Result<(), EngineError> {
        if let Some(at) = self.steps.iter().position(|step| step.shape == shape) {
            let step = self.steps.remove(at);
            self.steps.push(step);
            return Ok(());
        }
        if self.steps.len() >= PLANS {
            self.steps.remove(0);
        }
        if shape.kind != StepKind::Base {
            let trains = matches!(shape.kind, StepKind::Supervised | StepKind::Preference) && self.dropout > 0.0;
            attach(&mut *self.decoder, &self.arena, trains.then_some((self.dropout, &self.seed)))?;
        }
        let step = self.record(shape);
        self.decoder.detach(NAME);
        self.steps.push(step?);
        Ok(())
    }

    fn record(&mut self, shape: Shape) -> Result<Step, EngineError> {
        let gpu = self.gpu.as_ref();
        let cache = match self.cache.take().filter(|cache| cache.shape.context >= shape.tokens) {
            Some(cache) => cache,
            None => {
                // Recorded steps refer to the smaller cache.
                self.steps.clear();
                Cache::new(
                    gpu,
                    CacheShape {
                        sequences: 1,
                        context: shape.tokens,
                        format: CacheFormat::F32,
                        step: None,
                        positions: None,
                    },
                    &self.decoder.cache_specs(),
                )?
            }
        };
        let step =
            Step::new(gpu, &*self.decoder, &self.arena, &cache, shape, &self.options, &self.seed, &mut self.pool);
        self.cache = Some(cache);
        step
    }
}

/// Attaches the trained LoRA pairs to the decoder, with dropout if the step trains.
pub(super) fn attach(
    decoder: &mut dyn Decoder,
    arena: &Arena,
    dropout: Option<(f32, &Arc<State>)>,
) -> Result<(), EngineError> {
    for (number, slot) in arena.slots().iter().enumerate() {
        let [a, b] = slot.parameters.clone();
        let dropout = dropout.map(|(p, seed)| Dropout { p, salt: number as u32 + 1, seed: seed.clone() });
        let pair = LoraPair {
            adapter: NAME.to_string(),
            rows: 0..0,
            a,
            b,
            scale: slot.scale,
            dropout,
            enabled: true,
            factors: None,
        };
        if let Err(error) = decoder.attach(&slot.name, pair) {
            decoder.detach(NAME);
            return Err(error.into());
        }
    }
    Ok(())
}
