//! Low-rank adapters on a loaded model: attached, scaled and taken off between answers, over a base that never changes.

use bayan_models::{Adapter, LoraPart, layer_of};
use bayan_tensor::{State, Values};

use super::Engine;
use crate::GenerateError;

impl Engine {
    /// Attaches an adapter under a name; several add up. `scale` multiplies the adapter's own scale. Cached tokens are
    /// forgotten, since they were computed without it.
    ///
    /// # Errors
    /// A name that is taken, a module that the model does not have, sizes that do not fit it, or a device that is full;
    /// nothing is attached then.
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
        for (module, pair) in &adapter.modules {
            let device = layer_of(module).and_then(|layer| self.devices.layers.get(layer)).copied();
            let gpu = device.map_or(&self.head, |device| &self.devices.gpus[device]).clone();
            let state = |label: &str, shape: &[usize], values: &[f32]| {
                State::new(Some(&gpu), label, shape, Values::F32(values.to_vec()))
            };
            let part = LoraPart {
                adapter: name.to_string(),
                rows: 0..0,
                a: state("lora_A", &[pair.rank, pair.in_features], &pair.a)?,
                b: state("lora_B", &[pair.out_features, pair.rank], &pair.b)?,
                scale: pair.scale * scale,
                dropout: None,
            };
            self.decoder.attach(module, part)?;
        }
        Ok(())
    }

    /// Takes an adapter off; the base is bit for bit what it was. Returns whether there was one of that name.
    pub fn detach(&mut self, name: &str) -> bool {
        let known = self.adapters.iter().position(|known| known == name);
        if let Some(index) = known {
            self.adapters.remove(index);
            self.decoder.detach(name);
            self.forget();
        }
        known.is_some()
    }

    /// The names of the attached adapters.
    pub fn adapters(&self) -> &[String] {
        &self.adapters
    }

    /// Recorded steps and cached tokens belong to the adapters that were attached when they were made.
    fn forget(&mut self) {
        self.steps.clear();
        self.devices.forget_copies();
        self.reset();
    }
}
