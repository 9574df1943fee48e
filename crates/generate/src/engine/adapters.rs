//! LoRA adapters on a loaded model: attached for all answers, or loaded for the jobs that name them, over a base that
//! never changes.
//!
//! A step is recorded with the attached adapters and one loaded one, or, where its tokens have different ones, with all
//! loaded ones and a factor for each token: weights are read once for all. Every token pays for every adapter then, so
//! that with more than a few of them, and where an answer's bits must not depend on others, steps take turns.

use std::sync::Arc;

use bayan_models::{Adapter, LoraPair, TokenFactors, layer_of};
use bayan_tensor::{Dtype, State, Values};

use super::step::FACTORS;
use super::{Engine, StepSizes};
use crate::GenerateError;

/// Most loaded adapters with which tokens of different adapters share a step.
const MOST_SHARED: usize = 8;

/// The loaded adapters that a step is recorded with, beside the attached ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum StepAdapters {
    /// The same for all tokens: none, or the named one.
    Same(Option<String>),
    /// All, and each token has its own.
    Each,
}

impl StepAdapters {
    /// No loaded adapter.
    pub(super) const NONE: StepAdapters = StepAdapters::Same(None);

    /// What a step for tokens with these adapters is recorded with.
    pub(super) fn of<'a>(mut adapters: impl Iterator<Item = &'a Option<String>>) -> StepAdapters {
        let first = adapters.next().cloned().flatten();
        let same = adapters.all(|adapter| *adapter == first);
        if same { StepAdapters::Same(first) } else { StepAdapters::Each }
    }

    /// Whether tokens with an adapter may be in the step.
    pub(super) fn take(&self, adapter: &Option<String>) -> bool {
        match self {
            StepAdapters::Same(own) => own == adapter,
            StepAdapters::Each => true,
        }
    }
}

impl Engine {
    /// Attaches an adapter under a name; several add up. `scale` multiplies the adapter's own scale. The cache is
    /// cleared, because its tokens were computed without the adapter.
    ///
    /// # Errors
    /// The name is taken, the model does not have a module of the adapter, sizes do not match, or the device's memory
    /// is exhausted; nothing is attached then.
    pub fn attach(&mut self, name: &str, adapter: &Adapter, scale: f32) -> Result<(), GenerateError> {
        if self.adapters.iter().any(|known| known == name) {
            return Err(GenerateError::AdapterName(name.to_string()));
        }
        let attached = self.attach_modules(name, adapter, scale);
        if attached.is_err() {
            self.decoder.detach(name);
        } else {
            self.adapters.push(name.to_string());
        }
        self.forget();
        attached
    }

    fn attach_modules(&mut self, name: &str, adapter: &Adapter, scale: f32) -> Result<(), GenerateError> {
        adapter.require_plain()?;
        for (module, pair) in &adapter.modules {
            let device = layer_of(module).and_then(|layer| self.devices.layers.get(layer)).copied();
            let gpu = device.and_then(|device| self.devices.gpus.get(device)).or(self.head_gpu.as_ref()).cloned();
            let state = |label: &str, shape: &[usize], values: &[f32]| {
                State::new(gpu.as_ref(), label, shape, Values::F32(values.to_vec()))
            };
            let pair = LoraPair {
                adapter: name.to_string(),
                rows: 0..0,
                a: state("lora_A", &[pair.rank, pair.in_features], &pair.a)?,
                b: state("lora_B", &[pair.out_features, pair.rank], &pair.b)?,
                scale: pair.scale * scale,
                dropout: None,
                enabled: true,
                factors: None,
            };
            self.decoder.attach(module, pair)?;
        }
        Ok(())
    }

    /// Detaches an adapter; the base is then bit for bit what it was. Returns whether an adapter had that name.
    pub fn detach(&mut self, name: &str) -> bool {
        let known = self.adapters.iter().position(|known| known == name);
        if let Some(index) = known {
            self.adapters.remove(index);
            self.decoder.detach(name);
            self.forget();
        }
        known.is_some()
    }

    /// Loads an adapter for the jobs that name it. Other jobs, their steps and their cached tokens are not affected.
    ///
    /// # Errors
    /// As [`Engine::attach`]; nothing is loaded then.
    pub fn load_adapter(&mut self, name: &str, adapter: &Adapter) -> Result<(), GenerateError> {
        if self.loaded.contains(name) || self.adapters.iter().any(|known| known == name) {
            return Err(GenerateError::AdapterName(name.to_string()));
        }
        let loaded = self.attach_modules(name, adapter, 1.0);
        match &loaded {
            Ok(()) => {
                self.loaded.insert(name.to_string());
                self.forget_steps(name);
            }
            Err(_) => drop(self.decoder.detach(name)),
        }
        loaded
    }

    /// Unloads an adapter, with its steps and the tokens that were cached with it. Returns whether there was one.
    ///
    /// # Errors
    /// A job uses it.
    pub fn unload_adapter(&mut self, name: &str) -> Result<bool, GenerateError> {
        if self.jobs.use_adapter(name) {
            return Err(GenerateError::AdapterInUse(name.to_string()));
        }
        if !self.loaded.remove(name) {
            return Ok(false);
        }
        self.decoder.detach(name);
        self.forget_steps(name);
        for slot in 0..self.cached.len() {
            if self.slot_adapters[slot].as_deref() == Some(name) {
                self.cached[slot].clear();
            }
        }
        Ok(true)
    }

    /// The names of the adapters that jobs may name.
    pub fn loaded_adapters(&self) -> impl Iterator<Item = &str> {
        self.loaded.iter().map(String::as_str)
    }

    /// Drops the steps that are recorded with a loaded adapter.
    fn forget_steps(&mut self, name: &str) {
        let has = |adapters: &StepAdapters| match adapters {
            StepAdapters::Same(own) => own.as_deref() == Some(name),
            StepAdapters::Each => true,
        };
        self.steps.retain(|(_, adapters), _| !has(adapters));
    }

    /// Whether tokens with different adapters may share a step.
    pub(super) fn share_steps(&self) -> bool {
        let few = (1..=MOST_SHARED).contains(&self.loaded.len());
        few && self.sizes != StepSizes::Invariant && self.speculation.is_none()
    }

    /// The number of a job's adapter among the loaded ones.
    pub(super) fn adapter_number(&self, adapter: &Option<String>) -> Option<usize> {
        adapter.as_ref().and_then(|name| self.loaded.iter().position(|loaded| loaded == name))
    }

    /// Switches loaded adapters on or off for the step that is recorded next. Returns the factors that it has as an
    /// input, where its tokens have different adapters.
    ///
    /// # Errors
    /// The device's memory is exhausted.
    pub(super) fn enable(
        &mut self,
        adapters: &StepAdapters,
        tokens: usize,
    ) -> Result<Option<Arc<State>>, GenerateError> {
        if self.loaded.is_empty() {
            return Ok(None);
        }
        let mut pairs: Vec<&mut LoraPair> =
            self.decoder.linears_mut().into_iter().flat_map(|linear| &mut linear.lora).collect();
        let number = |pair: &LoraPair| self.loaded.iter().position(|loaded| *loaded == pair.adapter);
        let rank = pairs.iter().filter(|pair| number(pair).is_some()).map(|pair| pair.a.shape()[0]).max().unwrap_or(0);
        let factors = match adapters {
            StepAdapters::Same(_) => None,
            StepAdapters::Each => {
                let shape = [tokens, self.loaded.len() * rank];
                Some(State::zeros(self.devices.gpus.first(), FACTORS, &shape, Dtype::F32)?)
            }
        };
        for pair in &mut pairs {
            let number = number(pair);
            pair.enabled = number.is_none() || adapters.take(&Some(pair.adapter.clone()));
            let of = |state: &Arc<State>, number| TokenFactors { state: state.clone(), first: number * rank };
            pair.factors = factors.as_ref().zip(number).map(|(state, number)| of(state, number));
        }
        Ok(factors)
    }

    /// The names of the attached adapters.
    pub fn adapters(&self) -> &[String] {
        &self.adapters
    }

    /// Clears recorded steps and cached tokens: they are valid only for the adapters attached when they were made.
    fn forget(&mut self) {
        self.steps.clear();
        self.devices.drop_copies();
        self.reset();
    }
}
