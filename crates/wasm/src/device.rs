//! Opens the device, and describes it.

use bayan_gpu::{Capabilities, Gpu, GpuOptions};
use serde_json::{Value, json};

use crate::browser::{self, Adapter};
use crate::error::EngineError;
use crate::options::CreateOptions;

/// Opens a device with `subgroups`, if the `GPUAdapter` has them and the options do not disable them.
pub(crate) async fn open(options: &CreateOptions) -> Result<(Gpu, Value), EngineError> {
    let low_power = options.low_power()?;
    let mut disable = options.disable()?;
    let adapter = browser::adapter(low_power).await?;
    let has_subgroups = adapter.has_subgroups();
    browser::want_subgroups(has_subgroups && !disable.subgroups);
    // A `GPUAdapter` without the feature still reports subgroup sizes, so `bayan-gpu` cannot detect that it is missing.
    disable.subgroups |= !has_subgroups;
    let options =
        GpuOptions { disable, low_power, max_binding_bytes: options.max_binding_bytes, ..GpuOptions::default() };
    let gpu = Gpu::open(&options).await?;
    let info = describe(&adapter, gpu.capabilities(), has_subgroups);
    Ok((gpu, info))
}

/// The page's `DeviceInfo`, with further fields for tests and reports.
fn describe(adapter: &Adapter, capabilities: &Capabilities, has_subgroups: bool) -> Value {
    let mut missing = capabilities.missing.clone();
    if !has_subgroups && !missing.iter().any(|m| m.starts_with("subgroups")) {
        missing.push("subgroups: sums go through workgroup memory".to_string());
    }
    json!({
        "adapter": adapter.name(),
        "vendor": adapter.vendor,
        "architecture": adapter.architecture,
        "software": capabilities.software,
        "path": capabilities.path(),
        "paths": {
            "matmul": if capabilities.f16 { "f16" } else { "f32" },
            "reduce": if capabilities.subgroups { "subgroups" } else { "workgroup" },
            "dot": if capabilities.dot { "packed" } else { "f32" },
        },
        "features": adapter.features,
        "missing": missing,
        "subgroupSize": [capabilities.subgroup_size.0, capabilities.subgroup_size.1],
        "maxBufferBytes": capabilities.max_buffer_bytes,
        "maxBindingBytes": capabilities.max_binding_bytes,
        "maxWorkgroupBytes": capabilities.max_workgroup_bytes,
        "maxWorkgroupSize": capabilities.max_workgroup_size,
        "maxStorageBuffers": capabilities.max_storage_buffers,
    })
}
