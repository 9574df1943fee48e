//! LoRA adapters on a loaded model: attached, scaled and detached between answers, over a base that never changes.

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
        adapter.require_plain()?;
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
            let gpu = device.map_or(&self.head_gpu, |device| &self.devices.gpus[device]).clone();
            let state = |label: &str, shape: &[usize], values: &[f32]| {
                State::new(Some(&gpu), label, shape, Values::F32(values.to_vec()))
            };
            let pair = LoraPair {
                adapter: name.to_string(),
                rows: 0..0,
                a: state("lora_A", &[pair.rank, pair.in_features], &pair.a)?,
                b: state("lora_B", &[pair.out_features, pair.rank], &pair.b)?,
                scale: pair.scale * scale,
                dropout: None,
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
