//! Opens the device, a GPU or the CPU, and describes it.

use bayan_generate::engine::Pause;
use bayan_gpu::{Capabilities, Gpu, GpuOptions};
use bayan_tensor::Cpu;
use serde_json::{Value, json};

use crate::browser::{self, Adapter};
use crate::error::{Code, EngineError};
use crate::helpers;
use crate::options::{CreateOptions, Wanted};
use crate::pause;

/// What runs the model.
#[derive(Clone)]
pub(crate) enum Device {
    /// A GPU, through WebGPU.
    Gpu(Gpu),
    /// The processor, on the worker's thread and those of its helpers.
    Cpu(Cpu),
}

impl Device {
    /// The error that the device has reported, if any.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        match self {
            Device::Gpu(gpu) => Ok(gpu.check()?),
            Device::Cpu(cpu) => Ok(cpu.check()?),
        }
    }

    /// Waits for the device, and returns an error that it reported.
    pub(crate) async fn flush(&self) -> Result<(), EngineError> {
        match self {
            Device::Gpu(gpu) => Ok(gpu.flush().await?),
            Device::Cpu(cpu) => Ok(cpu.check()?),
        }
    }

    /// What the engine awaits between steps on the CPU.
    pub(crate) fn pause() -> Pause {
        std::rc::Rc::new(|| Box::pin(pause::pause()))
    }
}

/// Opens the device that the options name; by default the GPU, or the CPU where the browser offers none.
pub(crate) async fn open(options: &CreateOptions) -> Result<(Device, Value), EngineError> {
    match options.device()? {
        Wanted::Cpu => cpu("GPU: not used, because the options name the CPU".to_string(), options.threads).await,
        Wanted::Gpu => gpu(options).await,
        Wanted::Any => match gpu(options).await {
            Err(error) if error.code() == Code::NoWebGpu => {
                cpu(format!("GPU: {}", error.message()), options.threads).await
            }
            other => other,
        },
    }
}

/// Opens a GPU with `subgroups`, if the `GPUAdapter` and the browser's WGSL have what the kernels need and the options
/// do not disable them. Packed dot products, the only other language feature, are asked for by `bayan-gpu`.
async fn gpu(options: &CreateOptions) -> Result<(Device, Value), EngineError> {
    let low_power = options.low_power()?;
    let mut disable = options.disable()?;
    let adapter = browser::adapter(low_power).await?;
    let lacks_subgroups = adapter.lacks_subgroups();
    browser::want_subgroups(lacks_subgroups.is_none() && !disable.subgroups);
    // A `GPUAdapter` without the feature still reports subgroup sizes, so `bayan-gpu` cannot detect that it is missing.
    disable.subgroups |= lacks_subgroups.is_some();
    let options =
        GpuOptions { disable, low_power, max_binding_bytes: options.max_binding_bytes, ..GpuOptions::default() };
    let gpu = Gpu::open(&options).await?;
    let info = describe(&adapter, gpu.capabilities(), lacks_subgroups);
    Ok((Device::Gpu(gpu), info))
}

/// The CPU, with helpers where the page may have them; `missing` says why there is no GPU.
async fn cpu(missing: String, threads: Option<usize>) -> Result<(Device, Value), EngineError> {
    let mut missing = vec![format!("{missing}; the CPU computes, more slowly")];
    let cpu = match helpers::start(threads).await {
        Ok(channels) => Cpu::with_helpers(channels)?,
        Err(reason) => {
            missing.push(format!("threads: one, because {reason}"));
            Cpu::open(None)?
        }
    };
    let capabilities = cpu.capabilities();
    let info = json!({
        "kind": "cpu",
        "adapter": "CPU",
        "software": false,
        "path": capabilities.path(),
        "paths": {
            "vectors": capabilities.path(),
            "threads": (cpu.threads() + cpu.helper_count()).to_string(),
        },
        "missing": missing,
        "maxBufferBytes": LARGEST_CPU_BYTES,
        "maxWeightBytes": LARGEST_CPU_WEIGHTS_BYTES,
    });
    Ok((Device::Cpu(cpu), info))
}

/// Bytes of weights and cache that a model may have on the CPU: the memory of WebAssembly ends at 4 GiB, and the rest
/// is for what is read, for activations and for the tokenizer.
pub(crate) const LARGEST_CPU_BYTES: u64 = 3 << 30;

/// Bytes of weights that a model may have on the CPU. Every token reads all of them, at 1 to 3 GB in a second: more of
/// them would be too slow to talk to. Models of 0.6B parameters at 4 bits have 350 MB.
pub(crate) const LARGEST_CPU_WEIGHTS_BYTES: u64 = 640_000_000;

/// How products, sums over invocations and integer products are computed.
pub(crate) fn paths(capabilities: &Capabilities) -> Value {
    json!({
        "matmul": if capabilities.f16 { "f16" } else { "f32" },
        "reduce": if capabilities.subgroups { "subgroups" } else { "workgroup" },
        "dot": if capabilities.dot { "packed" } else { "f32" },
    })
}

/// The page's `DeviceInfo`, with further fields for tests and reports.
fn describe(adapter: &Adapter, capabilities: &Capabilities, lacks_subgroups: Option<&str>) -> Value {
    let mut missing = capabilities.missing.clone();
    if let Some(reason) = lacks_subgroups {
        missing.retain(|m| !m.starts_with("subgroups"));
        missing.push(reason.to_string());
    }
    json!({
        "kind": "gpu",
        "adapter": adapter.name(),
        "vendor": adapter.vendor,
        "architecture": adapter.architecture,
        "software": capabilities.software,
        "path": capabilities.path(),
        "paths": paths(capabilities),
        "features": adapter.features,
        "languageFeatures": adapter.language,
        "missing": missing,
        "subgroupSize": [capabilities.subgroup_size.0, capabilities.subgroup_size.1],
        "maxBufferBytes": capabilities.max_buffer_bytes,
        "maxBindingBytes": capabilities.max_binding_bytes,
        "maxWorkgroupBytes": capabilities.max_workgroup_bytes,
        "maxWorkgroupSize": capabilities.max_workgroup_size,
        "maxStorageBuffers": capabilities.max_storage_buffers,
    })
}
