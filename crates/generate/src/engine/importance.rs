//! Measures importance on a text: the mean square of each input of every matrix, by which a quantizer weights its
//! errors.
//!
//! The device computes the sums, with one operation before each linear layer that is recorded in this mode only.
//! Rejected: reading the activations back and summing on the host, because that is tens of thousands of numbers for
//! every token.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bayan_tensor::{Dtype, Matrix, State};
use bayan_weights::Importance;

use super::Engine;
use super::adapters::StepAdapters;
use super::step::{Step, StepKind, StepSpec};
use crate::GenerateError;

impl Engine {
    /// Runs the model over the windows, each from the first position on, and returns the mean squared inputs of the
    /// matrices by tensor name. An embedding that is also the output head has the values of the head. `on_progress` is
    /// called with the number of tokens so far. The first sequence's cache is cleared for each window.
    ///
    /// # Errors
    /// A window does not fit the context, the device fails, or an activation is not finite.
    pub async fn importance(
        &mut self,
        windows: &[&[u32]],
        on_progress: &mut dyn FnMut(u64),
    ) -> Result<Importance, GenerateError> {
        self.enable(&StepAdapters::NONE, 0)?;
        for window in windows {
            self.check(window)?;
            if window.len() > self.context() {
                return Err(GenerateError::PromptTooLong { prompt: window.len(), context: self.context() });
            }
        }
        let mut sums: HashMap<*const Matrix, Arc<State>> = HashMap::new();
        let mut names: Vec<(String, *const Matrix)> = Vec::new();
        for linear in self.decoder.linears_mut() {
            let of = Arc::as_ptr(&linear.weight);
            if let Entry::Vacant(entry) = sums.entry(of) {
                let gpu = self.devices.gpus.iter().find(|gpu| linear.weight.is_on(gpu));
                entry.insert(State::zeros(gpu, "squares", &[linear.weight.columns()], Dtype::F32)?);
            }
            let mut tensors: Vec<String> =
                linear.modules.iter().map(|(module, _)| format!("{module}.weight")).collect();
            if let [tensor] = tensors.as_mut_slice() {
                // A head that shares the embedding has no tensor of its own.
                *tensor = linear.weight.label().to_string();
            }
            names.extend(tensors.into_iter().map(|tensor| (tensor, of)));
        }
        let mut steps: HashMap<usize, Step> = HashMap::new();
        let mut tokens = 0;
        for window in windows {
            let mut position = 0;
            for chunk in window.chunks(self.chunks.chunk()) {
                if let Entry::Vacant(entry) = steps.entry(chunk.len()) {
                    let of = |matrix: &Arc<Matrix>| sums.get(&Arc::as_ptr(matrix)).cloned();
                    let spec = StepSpec {
                        decoder: self.decoder.as_ref(),
                        cache: &self.cache,
                        sampling: &self.sampling,
                        tuning: &self.tuning,
                        sums: Some(&of),
                        factors: None,
                    };
                    entry.insert(Step::new(&mut self.devices, &spec, StepKind::Prefill(chunk.len()))?);
                    self.devices.fill_copies().await?;
                }
                let Some(step) = steps.get(&chunk.len()) else { continue };
                self.hold(0, position + chunk.len())?;
                step.write(chunk, position, 0, &self.cache.table());
                position += chunk.len();
                step.run_prefill(position, 1).await?;
                tokens += chunk.len() as u64;
                on_progress(tokens);
            }
        }
        self.reset();
        let mut means = BTreeMap::new();
        for (name, of) in names {
            let state = &sums[&of];
            let values = state.read(self.devices.gpus.iter().find(|gpu| state.is_on(gpu))).await?;
            means.insert(name, values.f32().iter().map(|sum| sum / tokens.max(1) as f32).collect());
        }
        Ok(Importance::new(tokens, means)?)
    }
}
