//! LoRA adapters on a loaded model: attached for all answers, or loaded for the jobs that name them, over a base that
//! never changes.
//!
//! A step is recorded with the attached adapters and at most one loaded one, so that rows with different adapters are
//! computed in different steps, which take turns. Rejected: all adapters in one step with a factor for each row,
//! because every row would pay for every adapter.

use bayan_models::{Adapter, LoraPair, layer_of};
use bayan_tensor::{State, Values};

use super::Engine;
use crate::GenerateError;

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
            Ok(()) => drop(self.loaded.insert(name.to_string())),
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
        self.steps.retain(|(_, adapter), _| adapter.as_deref() != Some(name));
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

    /// Switches loaded adapters on or off for the step that is recorded next.
    pub(super) fn enable(&mut self, adapter: Option<&str>) {
        if self.loaded.is_empty() {
            return;
        }
        for pair in self.decoder.linears_mut().into_iter().flat_map(|linear| &mut linear.lora) {
            pair.enabled = !self.loaded.contains(&pair.adapter) || adapter == Some(pair.adapter.as_str());
        }
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
