//! The devices of an engine, the layers of each, and the small constants that more than one device needs.

use std::collections::HashMap;
use std::sync::Arc;

use bayan_gpu::{Capabilities, Gpu, GpuError};
use bayan_models::Placement;
use bayan_tensor::{Cpu, Pool, State};

/// The devices. The first has the embedding.
pub(super) struct Devices {
    /// The GPUs; none on the CPU.
    pub(super) gpus: Vec<Gpu>,
    /// The CPU, if it runs the model.
    pub(super) cpu: Option<Cpu>,
    /// The device of each layer.
    pub(super) layers: Vec<usize>,
    /// Copies of constants, such as rotary tables, for other devices, by original address and device. The original is
    /// kept alive, so that its address stays unique.
    copies: HashMap<(usize, usize), (Arc<State>, Arc<State>)>,
    /// Copies that are not filled yet: (original, copy, device).
    pending: Vec<(Arc<State>, Arc<State>, usize)>,
    /// The memory of activations of each GPU, where all steps share it; `None`: each step has its own.
    pools: Option<Vec<Pool>>,
}

impl Devices {
    pub(super) fn new(gpus: &[Gpu], layers: Vec<usize>) -> Devices {
        Devices { gpus: gpus.to_vec(), cpu: None, layers, copies: HashMap::new(), pending: Vec::new(), pools: None }
    }

    /// The CPU alone, with all layers.
    pub(super) fn of_cpu(cpu: &Cpu) -> Devices {
        Devices { cpu: Some(cpu.clone()), ..Devices::new(&[], Vec::new()) }
    }

    /// From now on, steps share the memory of activations: a device runs them one after the other. Steps of many exact
    /// sizes have their own, because the memory of those that are dropped again could not be freed.
    pub(super) fn share_memory(&mut self) {
        self.pools = Some(vec![Pool::default(); self.gpus.len()]);
    }

    /// The memory for the activations of a new step on a device.
    pub(super) fn pool(&mut self, device: usize) -> Pool {
        self.pools.as_mut().and_then(|pools| pools.get_mut(device)).map(std::mem::take).unwrap_or_default()
    }

    /// Takes memory back, with what the new step has added to it.
    pub(super) fn put_back(&mut self, device: usize, pool: Pool) {
        if let Some(place) = self.pools.as_mut().and_then(|pools| pools.get_mut(device)) {
            *place = pool;
        }
    }

    /// What the device, or the first of several, offers.
    pub(super) fn capabilities(&self) -> Option<&Capabilities> {
        self.cpu.as_ref().map(Cpu::capabilities).or_else(|| self.gpus.first().map(Gpu::capabilities))
    }

    pub(super) fn placement(&self, gpu_layers: Option<usize>) -> Placement<'_> {
        Placement { gpus: &self.gpus, cpu: self.cpu.as_ref(), layers: &self.layers, gpu_layers }
    }

    /// The copy of a constant on another device. [`Devices::fill_copies`] fills it.
    pub(super) fn copy(&mut self, state: &Arc<State>, device: usize) -> Result<Arc<State>, GpuError> {
        let key = (Arc::as_ptr(state) as usize, device);
        if let Some((_, copy)) = self.copies.get(&key) {
            return Ok(copy.clone());
        }
        let copy = State::zeros(self.gpus.get(device), state.label(), state.shape(), state.dtype())?;
        self.copies.insert(key, (state.clone(), copy.clone()));
        self.pending.push((state.clone(), copy.clone(), device));
        Ok(copy)
    }

    /// Transfers the values of new copies.
    pub(super) async fn fill_copies(&mut self) -> Result<(), GpuError> {
        for (state, copy, device) in std::mem::take(&mut self.pending) {
            let home = self.gpus.iter().find(|gpu| state.is_on(gpu));
            let values = state.read(home).await?;
            copy.write(self.gpus.get(device), 0, values.bytes());
        }
        Ok(())
    }

    /// Frees the copies and the shared memory; no step may use them any more.
    pub(super) fn drop_copies(&mut self) {
        self.copies.clear();
        self.pending.clear();
        self.pools.iter_mut().flatten().for_each(|pool| *pool = Pool::default());
    }

    pub(super) async fn flush(&self) -> Result<(), GpuError> {
        for gpu in &self.gpus {
            gpu.flush().await?;
        }
        Ok(())
    }
}
