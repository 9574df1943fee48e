//! What the steps of this model cost on its device: dispatches, and measured times.

use bayan_gpu::KernelTime;
use bayan_tensor::{Cost, PlannedKernel};

use super::Engine;
use super::adapters::StepAdapters;
use super::step::StepKind;
use crate::GenerateError;

impl Engine {
    /// The cost of decoding one token.
    ///
    /// # Errors
    /// The step cannot be recorded.
    pub fn decode_cost(&mut self) -> Result<Cost, GenerateError> {
        Ok(self.step(StepKind::Decode(1), &StepAdapters::NONE)?.cost())
    }

    /// The dispatches that decode one token of each of `sequences`, with `cached` positions in the longest.
    ///
    /// # Errors
    /// The step cannot be recorded.
    pub fn decode_kernels(&mut self, sequences: usize, cached: usize) -> Result<Vec<PlannedKernel>, GenerateError> {
        Ok(self.step(StepKind::Decode(sequences), &StepAdapters::NONE)?.kernels(cached))
    }

    /// The dispatches of this many tokens of a prompt, with `cached` positions after them.
    ///
    /// # Errors
    /// As [`Engine::decode_kernels`].
    pub fn prompt_kernels(&mut self, tokens: usize, cached: usize) -> Result<Vec<PlannedKernel>, GenerateError> {
        Ok(self.step(StepKind::Prefill(tokens), &StepAdapters::NONE)?.kernels(cached))
    }

    /// The time of each kernel for one decoded token.
    ///
    /// # Errors
    /// The device has no timestamps, or fails.
    pub async fn profile_decode(&mut self) -> Result<Vec<KernelTime>, GenerateError> {
        let step = self.prepared_step(StepKind::Decode(1), &StepAdapters::NONE).await?;
        let position = self.cached[0].len().min(self.context() - 1);
        self.hold(0, position + 1)?;
        step.write(&[0], position, 0, &self.cache.table());
        Ok(step.profile(position + 1).await?)
    }

    /// The time of each kernel for a prompt of this many tokens.
    ///
    /// # Errors
    /// The device has no timestamps, or fails.
    pub async fn profile_prefill(&mut self, tokens: usize) -> Result<Vec<KernelTime>, GenerateError> {
        let step = self.prepared_step(StepKind::Prefill(tokens), &StepAdapters::NONE).await?;
        self.reset();
        self.hold(0, tokens)?;
        step.write(&vec![0; tokens], 0, 0, &self.cache.table());
        Ok(step.profile(tokens).await?)
    }
}
