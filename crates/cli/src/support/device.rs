//! Opens the device that the flags select.

use crate::support::options::DeviceArgs;
use crate::support::output;
use anyhow::{Result, bail};
use bayan_generate::{Cpu, Engine, EngineOptions, GenerateError};
use bayan_gpu::{Capabilities, DeviceSummary, Gpu, GpuOptions, block_on, list_devices};
use bayan_models::OnProgress;
use bayan_weights::Checkpoint;

/// The name of the CPU for `--device`.
pub const CPU: &str = "cpu";

/// An open device.
pub enum Device {
    /// A GPU, or a software device with a GPU's interface.
    Gpu(Gpu),
    /// The CPU.
    Cpu(Cpu),
}

impl Device {
    /// What the device offers.
    pub fn capabilities(&self) -> &Capabilities {
        match self {
            Device::Gpu(gpu) => gpu.capabilities(),
            Device::Cpu(cpu) => cpu.capabilities(),
        }
    }

    /// Loads a checkpoint onto the device.
    ///
    /// # Errors
    /// As [`Engine::open`] and [`Engine::open_on_cpu`].
    pub fn engine(
        &self,
        checkpoint: &Checkpoint,
        options: &EngineOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Engine, GenerateError> {
        match self {
            Device::Gpu(gpu) => block_on(Engine::open(checkpoint, gpu, options, on_progress)),
            Device::Cpu(cpu) => block_on(Engine::open_on_cpu(checkpoint, cpu, options, on_progress)),
        }
    }
}

/// Whether the flags name the CPU.
pub fn is_cpu(args: &DeviceArgs) -> bool {
    args.device.as_deref().is_some_and(|name| name.trim().eq_ignore_ascii_case(CPU))
}

/// Opens the selected device: by default the first GPU, or the CPU where there is none.
///
/// # Errors
/// There is no such device, or it cannot be opened.
pub fn open(args: &DeviceArgs) -> Result<Device> {
    if is_cpu(args) {
        return Ok(Device::Cpu(cpu(args)?));
    }
    if args.device.is_none() && has_no_gpu(&block_on(list_devices(args.disable))) {
        return Ok(Device::Cpu(cpu_by_default(args)?));
    }
    Ok(Device::Gpu(gpu(args)?))
}

/// Whether none of the listed devices, best first, is a GPU.
pub fn has_no_gpu(listed: &[DeviceSummary]) -> bool {
    listed.first().is_none_or(|first| first.capabilities.software)
}

/// The CPU, because there is no GPU; says so.
///
/// # Errors
/// As [`Cpu::open`].
pub fn cpu_by_default(args: &DeviceArgs) -> Result<Cpu> {
    let cpu = cpu(args)?;
    output::note(&format!(
        "there is no GPU here: the model runs on the CPU ({}); `--device N` selects a device of `bayan devices`",
        cpu.capabilities().driver
    ));
    Ok(cpu)
}

/// The CPU with the threads that the flags set.
///
/// # Errors
/// As [`Cpu::open`].
pub fn cpu(args: &DeviceArgs) -> Result<Cpu> {
    Ok(Cpu::open(args.threads.map(|threads| threads as usize))?)
}

/// Opens the selected GPU or software device; by default the best.
///
/// # Errors
/// There is no such device, it cannot be opened, or the flags name the CPU.
pub fn gpu(args: &DeviceArgs) -> Result<Gpu> {
    if is_cpu(args) {
        bail!(
            "--device cpu: expected a GPU, or a software device of `bayan devices`, because training runs there only; \
             leave `--device` out, or name one of them"
        );
    }
    if args.threads.is_some() {
        output::note("--threads has no effect here: it is for `--device cpu`");
    }
    let options = GpuOptions {
        device: args.device.clone(),
        disable: args.disable,
        max_binding_bytes: args.max_binding_bytes,
        purpose: args.purpose,
        ..Default::default()
    };
    Ok(block_on(Gpu::open(&options))?)
}

/// Opens the selected device for training: f32 throughout unless `f16` is set, and without packed dot products, because
/// int8 activations have no gradient.
///
/// # Errors
/// As [`gpu`], or the device lacks f16 and `f16` is set.
pub fn gpu_to_train(args: &DeviceArgs, f16: bool) -> Result<Gpu> {
    let mut args = args.clone();
    let forbidden = args.disable.f16;
    args.disable.f16 |= !f16;
    args.disable.dot = true;
    let gpu = gpu(&args)?;
    if f16 && !gpu.capabilities().f16 {
        let why = if forbidden { " with `--disable f16`" } else { " without it" };
        let remedy = if forbidden {
            "leave one of the two flags out"
        } else {
            "choose another with --device, or leave the flag out to train in f32"
        };
        bail!("--f16: expected a device with f16 arithmetic, got {}{why}; {remedy}", gpu.capabilities().name);
    }
    Ok(gpu)
}
