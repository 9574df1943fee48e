//! Opens the device, and describes it.

use bayan_gpu::{Capabilities, Gpu, GpuOptions};
use serde_json::{Value, json};

use crate::browser::{self, Adapter};
use crate::error::EngineError;
use crate::options::CreateOptions;

/// Opens a device with `subgroups`, if the `GPUAdapter` and the browser's WGSL have what the kernels need and the
/// options do not disable them. Packed dot products, the only other language feature, are asked for by `bayan-gpu`.
pub(crate) async fn open(options: &CreateOptions) -> Result<(Gpu, Value), EngineError> {
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
    Ok((gpu, info))
}

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
