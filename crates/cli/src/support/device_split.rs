//! The devices of a model: the one or the several that the flags name, or as many as are needed to hold it.

use anyhow::{Result, bail};
use bayan_generate::Engine;
use bayan_gpu::{AdapterSummary, Gpu, GpuOptions, block_on, list_adapters};
use bayan_weights::Checkpoint;

use crate::support::memory;
use crate::support::options::ModelArgs;
use crate::support::output;

/// The fraction of a device's memory for weights and cache; the rest is for activations and for other programs such as
/// the desktop.
const USABLE: f64 = 0.9;

/// Open devices, and the share of the weights on each.
pub struct Devices {
    /// Devices in the order of their layers.
    pub gpus: Vec<Gpu>,
    /// One share for each device.
    pub shares: Vec<f64>,
}

/// Opens the devices that the flags select.
///
/// # Errors
/// A device does not exist, or the number of shares differs from the number of devices.
pub fn devices(checkpoint: &Checkpoint, args: &ModelArgs) -> Result<Devices> {
    let mut named = args.devices.clone();
    if named.is_empty() && args.device.device.is_none() && args.gpu_layers.is_none() {
        named = enough(checkpoint, args).into_iter().map(|index| index.to_string()).collect();
    }
    if named.is_empty() {
        return Ok(Devices { gpus: vec![crate::support::device::gpu(&args.device)?], shares: vec![1.0] });
    }
    if !args.tensor_split.is_empty() && args.tensor_split.len() != named.len() {
        bail!(
            "--tensor-split: expected {} numbers, one for each of --devices, got {}",
            named.len(),
            args.tensor_split.len()
        );
    }
    let device = &args.device;
    let options = |name: &String| GpuOptions {
        device: Some(name.trim().to_string()),
        disable: device.disable,
        max_binding_bytes: device.max_binding_bytes,
        ..Default::default()
    };
    let gpus = named.iter().map(|name| Ok(block_on(Gpu::open(&options(name)))?)).collect::<Result<Vec<_>>>()?;
    let shares = if args.tensor_split.is_empty() {
        shares(&gpus.iter().map(|gpu| gpu.capabilities().memory_bytes).collect::<Vec<_>>())
    } else {
        args.tensor_split.clone()
    };
    Ok(Devices { gpus, shares })
}

/// The memory of each device if all report it, otherwise equal shares.
pub fn shares(memory: &[Option<u64>]) -> Vec<f64> {
    let told: Option<Vec<f64>> =
        memory.iter().map(|bytes| bytes.filter(|bytes| *bytes > 0).map(|bytes| bytes as f64)).collect();
    told.unwrap_or_else(|| vec![1.0; memory.len()])
}

/// The indices of the devices needed for a model that does not fit the first one; empty if it fits the first, if that
/// does not report its memory, or if all devices together are too small.
fn enough(checkpoint: &Checkpoint, args: &ModelArgs) -> Vec<usize> {
    let adapters = block_on(list_adapters(args.device.disable));
    let Ok(sizes) = bayan_models::sizes(checkpoint) else { return Vec::new() };
    let memory = memory::memory(checkpoint, &sizes, args, adapters.first().map(|adapter| &adapter.capabilities));
    chosen(&adapters, memory.weight_bytes.saturating_add(memory.cache_bytes))
}

/// The first devices of the same kind and backend as the very first whose memory together is at least this many bytes;
/// empty if one is enough. A device may be listed once for each backend, so only one backend is counted.
pub fn chosen(adapters: &[AdapterSummary], needed_bytes: u64) -> Vec<usize> {
    if adapters.first().is_none_or(|first| first.capabilities.software) {
        return Vec::new();
    }
    let alike = adapters.iter().filter(|adapter| is_alike(adapter, &adapters[0]));
    let (mut taken, mut room) = (Vec::new(), 0.0);
    for adapter in alike {
        let Some(bytes) = adapter.capabilities.memory_bytes else { break };
        taken.push(adapter.index);
        room += bytes as f64 * USABLE;
        if room >= needed_bytes as f64 {
            return if taken.len() > 1 { taken } else { Vec::new() };
        }
    }
    Vec::new()
}

/// Whether two devices are of the same kind and backend.
pub fn is_alike(a: &AdapterSummary, b: &AdapterSummary) -> bool {
    (&a.capabilities.backend, &a.capabilities.device_type) == (&b.capabilities.backend, &b.capabilities.device_type)
}

/// Prints which layers each device has, and how many bytes are transferred between devices.
///
/// # Errors
/// A step cannot be recorded.
pub fn tell(engine: &mut Engine) -> Result<()> {
    if engine.gpus().len() < 2 {
        return Ok(());
    }
    let layers = engine.layer_devices().to_vec();
    let handed = engine.handed_bytes()?;
    let of = |(device, gpu): (usize, &Gpu)| {
        let first = layers.iter().position(|&at| at == device).unwrap_or(0);
        let last = layers.iter().rposition(|&at| at == device).unwrap_or(0);
        format!("{}: layers {first} to {last}, {}", gpu.capabilities().name, output::size(gpu.allocated_bytes()))
    };
    let parts: Vec<String> = engine.gpus().iter().enumerate().map(of).collect();
    output::note(&format!(
        "split over {} devices: {}; {} a token go from one to the next",
        parts.len(),
        parts.join("; "),
        output::size(handed)
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Device summaries for tests: this machine's first device with other names and memory.
    fn adapters(memory: &[(&str, Option<u64>)]) -> Vec<AdapterSummary> {
        let Some(one) = block_on(list_adapters(Default::default())).into_iter().next() else { return Vec::new() };
        let summary = |(index, (backend, memory_bytes)): (usize, &(&str, Option<u64>))| {
            let mut adapter = AdapterSummary { index, ..one.clone() };
            adapter.capabilities.software = false;
            adapter.capabilities.backend = backend.to_string();
            adapter.capabilities.memory_bytes = *memory_bytes;
            adapter
        };
        memory.iter().enumerate().map(summary).collect()
    }

    #[test]
    fn as_many_adapters_as_hold_the_model() {
        let three =
            adapters(&[("Vulkan", Some(100)), ("Dx12", Some(100)), ("Vulkan", Some(100)), ("Vulkan", Some(50))]);
        assert_eq!(chosen(&three, 90), Vec::<usize>::new(), "the first one is enough");
        assert_eq!(chosen(&three, 91), [0, 2]);
        assert_eq!(chosen(&three, 200), [0, 2, 3]);
        assert_eq!(chosen(&three, 500), Vec::<usize>::new(), "all of them are not");
        assert_eq!(chosen(&adapters(&[("Vulkan", None), ("Vulkan", Some(100))]), 500), Vec::<usize>::new(), "not told");
        assert_eq!(chosen(&[], 1), Vec::<usize>::new());
    }

    #[test]
    fn shares_are_the_memory_or_equal() {
        assert_eq!(shares(&[Some(3), Some(1)]), [3.0, 1.0]);
        assert_eq!(shares(&[Some(3), None]), [1.0, 1.0]);
    }
}
