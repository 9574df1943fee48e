//! The devices of a model: the one or the several that the flags name, or as many as are needed to hold it.

use anyhow::{Result, bail};
use bayan_generate::{Cpu, Engine};
use bayan_gpu::{DeviceSummary, Gpu, GpuOptions, Purpose, block_on, list_devices};
use bayan_weights::Checkpoint;

use crate::support::device;
use crate::support::memory;
use crate::support::options::ModelArgs;
use crate::support::output;

/// The fraction of a device's memory for weights and cache; the rest is for activations and for other programs such as
/// the desktop.
const USABLE_FRACTION: f64 = 0.9;

/// Open devices, and the share of the weights on each.
pub enum Devices {
    /// GPUs.
    Gpus {
        /// Devices in the order of their layers.
        gpus: Vec<Gpu>,
        /// One share for each device.
        shares: Vec<f64>,
    },
    /// The CPU alone.
    Cpu(Cpu),
}

/// Opens the devices that the flags select.
///
/// # Errors
/// A device does not exist, or the number of shares differs from the number of devices.
pub fn devices(checkpoint: &Checkpoint, args: &ModelArgs) -> Result<Devices> {
    if device::is_cpu(&args.device) {
        return Ok(Devices::Cpu(device::cpu(&args.device)?));
    }
    let mut named = args.devices.clone();
    if named.is_empty() && args.device.device.is_none() && args.gpu_layers.is_none() {
        let listed = block_on(list_devices(args.device.disable));
        if args.device.purpose == Purpose::Run && device::has_no_gpu(&listed) {
            return Ok(Devices::Cpu(device::cpu_by_default(&args.device)?));
        }
        named = devices_for_model(checkpoint, args, &listed).into_iter().map(|index| index.to_string()).collect();
    }
    if named.is_empty() {
        return Ok(Devices::Gpus { gpus: vec![device::gpu(&args.device)?], shares: vec![1.0] });
    }
    if !args.tensor_split.is_empty() && args.tensor_split.len() != named.len() {
        bail!(
            "--tensor-split: expected {} numbers, one for each of --devices, got {}",
            named.len(),
            args.tensor_split.len()
        );
    }
    let flags = &args.device;
    let options = |name: &String| GpuOptions {
        device: Some(name.trim().to_string()),
        disable: flags.disable,
        max_binding_bytes: flags.max_binding_bytes,
        purpose: flags.purpose,
        ..Default::default()
    };
    let gpus = named.iter().map(|name| Ok(block_on(Gpu::open(&options(name)))?)).collect::<Result<Vec<_>>>()?;
    let shares = if args.tensor_split.is_empty() {
        shares(&gpus.iter().map(|gpu| gpu.capabilities().memory_bytes).collect::<Vec<_>>())
    } else {
        args.tensor_split.clone()
    };
    Ok(Devices::Gpus { gpus, shares })
}

/// The memory of each device if all report it, otherwise equal shares.
pub fn shares(memory: &[Option<u64>]) -> Vec<f64> {
    let reported: Option<Vec<f64>> =
        memory.iter().map(|bytes| bytes.filter(|bytes| *bytes > 0).map(|bytes| bytes as f64)).collect();
    reported.unwrap_or_else(|| vec![1.0; memory.len()])
}

/// The indices of the devices needed for a model that does not fit the first one; empty if it fits the first, if that
/// does not report its memory, or if all devices together are too small.
fn devices_for_model(checkpoint: &Checkpoint, args: &ModelArgs, listed: &[DeviceSummary]) -> Vec<usize> {
    let Ok(sizes) = bayan_models::sizes(checkpoint) else { return Vec::new() };
    let memory = memory::memory(checkpoint, &sizes, args, listed.first().map(|device| &device.capabilities));
    fewest_devices(listed, memory.weight_bytes.saturating_add(memory.cache_bytes))
}

/// The first devices of the same kind and backend as the very first whose memory together is at least this many bytes;
/// empty if one is enough. A device may be listed once for each backend, so only one backend is counted.
pub fn fewest_devices(listed: &[DeviceSummary], needed_bytes: u64) -> Vec<usize> {
    if listed.first().is_none_or(|first| first.capabilities.software) {
        return Vec::new();
    }
    let same_kind = listed.iter().filter(|device| is_same_kind(device, &listed[0]));
    let (mut indices, mut usable_bytes) = (Vec::new(), 0.0);
    for device in same_kind {
        let Some(bytes) = device.capabilities.memory_bytes else { break };
        indices.push(device.index);
        usable_bytes += bytes as f64 * USABLE_FRACTION;
        if usable_bytes >= needed_bytes as f64 {
            return if indices.len() > 1 { indices } else { Vec::new() };
        }
    }
    Vec::new()
}

/// Whether two devices are of the same kind and backend.
pub fn is_same_kind(a: &DeviceSummary, b: &DeviceSummary) -> bool {
    (&a.capabilities.backend, &a.capabilities.device_type) == (&b.capabilities.backend, &b.capabilities.device_type)
}

/// Prints which layers each device has, and how many bytes are transferred between devices.
///
/// # Errors
/// A step cannot be recorded.
pub fn print_placement(engine: &mut Engine) -> Result<()> {
    if engine.gpus().len() < 2 {
        return Ok(());
    }
    let layers = engine.layer_devices().to_vec();
    let transferred = engine.transfer_bytes()?;
    let of = |(device, gpu): (usize, &Gpu)| {
        let first = layers.iter().position(|&at| at == device).unwrap_or(0);
        let last = layers.iter().rposition(|&at| at == device).unwrap_or(0);
        format!("{}: layers {first} to {last}, {}", gpu.capabilities().name, output::size(gpu.allocated_bytes()))
    };
    let parts: Vec<String> = engine.gpus().iter().enumerate().map(of).collect();
    output::note(&format!(
        "layers split over {} devices: {}; {} per token are transferred between them",
        parts.len(),
        parts.join("; "),
        output::size(transferred)
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Device summaries for tests: this machine's first device with other names and memory.
    fn listed(memory: &[(&str, Option<u64>)]) -> Vec<DeviceSummary> {
        let Some(one) = block_on(list_devices(Default::default())).into_iter().next() else { return Vec::new() };
        let summary = |(index, (backend, memory_bytes)): (usize, &(&str, Option<u64>))| {
            let mut device = DeviceSummary { index, ..one.clone() };
            device.capabilities.software = false;
            device.capabilities.backend = backend.to_string();
            device.capabilities.memory_bytes = *memory_bytes;
            device
        };
        memory.iter().enumerate().map(summary).collect()
    }

    #[test]
    fn as_many_devices_as_hold_the_model() {
        let three = listed(&[("Vulkan", Some(100)), ("Dx12", Some(100)), ("Vulkan", Some(100)), ("Vulkan", Some(50))]);
        assert_eq!(fewest_devices(&three, 90), Vec::<usize>::new(), "the first one is enough");
        assert_eq!(fewest_devices(&three, 91), [0, 2]);
        assert_eq!(fewest_devices(&three, 200), [0, 2, 3]);
        assert_eq!(fewest_devices(&three, 500), Vec::<usize>::new(), "all of them are not");
        assert_eq!(
            fewest_devices(&listed(&[("Vulkan", None), ("Vulkan", Some(100))]), 500),
            Vec::<usize>::new(),
            "the first does not report its memory"
        );
        assert_eq!(fewest_devices(&[], 1), Vec::<usize>::new());
    }

    #[test]
    fn shares_are_the_memory_or_equal() {
        assert_eq!(shares(&[Some(3), Some(1)]), [3.0, 1.0]);
        assert_eq!(shares(&[Some(3), None]), [1.0, 1.0]);
    }
}
