//! Opening a device: enumeration, features, limits, and how its errors are reported.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::buffer::Meter;
use crate::{Buffer, Capabilities, Disable, GpuError, Kernel};

/// Options for opening a device.
#[derive(Debug, Clone, Default)]
pub struct GpuOptions {
    /// Index into [`list_devices`], or a part of a device's name; `None` selects the fastest kind.
    pub device: Option<String>,
    /// Features that are not used.
    pub disable: Disable,
    /// In a browser: prefer the device that saves power.
    pub low_power: bool,
    /// Treat this as the largest binding, to test sharding.
    pub max_binding_bytes: Option<u64>,
    /// What is done with kernels.
    pub purpose: Purpose,
    /// Overrides the detected capabilities, to compile the kernels of devices that are not available. Results may be
    /// wrong.
    pub override_capabilities: Option<fn(&mut Capabilities)>,
}

/// What is done with the kernels of an open device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Purpose {
    /// They are compiled and run.
    #[default]
    Run,
    /// They are compiled, and the driver reports what it made of them ([`Kernel::report`]). Nothing runs: buffers take no
    /// memory, writes do nothing, and reading fails.
    Compile,
    /// They are linked, so that their texts can be read. Nothing is compiled or run.
    Link,
}

/// A device as the driver lists it.
#[derive(Debug, Clone)]
pub struct DeviceSummary {
    /// The device's index, for `--device`.
    pub index: usize,
    /// What Bayan would use of the device.
    pub capabilities: Capabilities,
}

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    purpose: Purpose,
    kernels: Mutex<HashMap<String, Kernel>>,
    staging: Mutex<Vec<wgpu::Buffer>>,
    allocated: Arc<Meter>,
    first_error: Arc<Mutex<Option<GpuError>>>,
    on_lost: OnLost,
}

/// What a device is said to lack that offers cooperative matrices, but multiplies them wrongly.
const WRONG_MATRICES: &str =
    "cooperative matrices: the driver offers them, but a product of two is wrong, so prompts run on other units";

/// Callback that is called once when the device is lost.
type OnLost = Arc<Mutex<Option<Box<dyn FnOnce(GpuError) + Send>>>>;

/// An open device. Clones share it.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
    capabilities: Arc<Capabilities>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({})", self.capabilities().name)
    }
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // wgpu would insert dispatches and barriers to validate indirect calls, and there are none here.
    descriptor.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(descriptor)
}

fn rank(info: &wgpu::AdapterInfo) -> u32 {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

async fn adapters(instance: &wgpu::Instance, low_power: bool) -> Vec<wgpu::Adapter> {
    // A browser does not enumerate devices, but returns one on request.
    let mut found = if cfg!(target_arch = "wasm32") {
        Vec::new()
    } else {
        instance.enumerate_adapters(wgpu::Backends::all()).await
    };
    if found.is_empty() {
        let power_preference =
            if low_power { wgpu::PowerPreference::LowPower } else { wgpu::PowerPreference::HighPerformance };
        let options = wgpu::RequestAdapterOptions { power_preference, ..Default::default() };
        found.extend(instance.request_adapter(&options).await);
    }
    found.sort_by_key(|adapter| rank(&adapter.get_info()));
    found
}

/// All devices, the preferred one first.
pub async fn list_devices(disable: Disable) -> Vec<DeviceSummary> {
    let instance = instance();
    let adapters = adapters(&instance, false).await;
    adapters
        .iter()
        .enumerate()
        .map(|(index, adapter)| DeviceSummary { index, capabilities: capabilities(&instance, adapter, disable) })
        .collect()
}

fn capabilities(instance: &wgpu::Instance, adapter: &wgpu::Adapter, disable: Disable) -> Capabilities {
    let info = adapter.get_info();
    let features = adapter.features();
    let limits = adapter.limits();
    let browser = info.backend == wgpu::Backend::BrowserWebGpu;
    // wgpu 30 does not report `subgroups` in a browser. The page's shim requests the feature, so the sizes are
    // reported.
    let has_subgroups = features.contains(wgpu::Features::SUBGROUP)
        || (browser && info.subgroup_min_size > 0 && info.subgroup_max_size > 0);
    let has_f16 = features.contains(wgpu::Features::SHADER_F16);
    let software = info.device_type == wgpu::DeviceType::Cpu && !disable.software;
    let matrix_size = matrix_size(adapter).filter(|_| has_f16 && has_subgroups);
    let has_dot = instance.wgsl_language_features().contains(wgpu::WgslLanguageFeatures::Packed4x8IntegerDotProduct);
    let mut missing = Vec::new();
    if !has_f16 {
        missing.push(
            "shader-f16: matrix products of prompts run in f32 (Chrome on Linux hides it for NVIDIA)".to_string(),
        );
    }
    if !has_subgroups {
        missing.push("subgroups: sums go through workgroup memory".to_string());
    }
    if !has_dot {
        missing.push("packed_4x8_integer_dot_product: activations stay in f32".to_string());
    }
    if matrix_size.is_none() && !software && !browser {
        missing.push("cooperative matrices of f16 with sums in f32: prompts run on other units".to_string());
    }
    Capabilities {
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        backend: format!("{:?}", info.backend),
        device_type: format!("{:?}", info.device_type),
        software,
        f16: has_f16 && !disable.f16,
        subgroups: has_subgroups && !disable.subgroups,
        subgroup_size: (info.subgroup_min_size, info.subgroup_max_size),
        dot: has_dot && !disable.dot,
        // No kernel for software devices uses them.
        matrix_size: matrix_size.filter(|_| !(software || disable.f16 || disable.subgroups || disable.matrices)),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        unchecked: !browser && !disable.unchecked,
        browser,
        memory_bytes: memory_bytes(adapter),
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
        max_workgroup_size: limits.max_compute_invocations_per_workgroup,
        max_workgroups: limits.max_compute_workgroups_per_dimension,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        max_loop_turns: None,
        offset_alignment: limits.min_storage_buffer_offset_alignment,
        instructions: None,
        missing,
        name: info.name,
    }
}

/// Side of the square matrices with f16 factors and f32 sums that the device multiplies: the larger of 16 and 8.
fn matrix_size(adapter: &wgpu::Adapter) -> Option<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    if !adapter.features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return None;
    }
    let offered = adapter.cooperative_matrix_properties();
    [16, 8].into_iter().find(|&size| {
        offered.iter().any(|p| [p.m_size, p.n_size, p.k_size] == [size; 3] && p.ab_type == F16 && p.cr_type == F32)
    })
}

/// Size of the largest heap of the device's own memory. WebGPU does not report it, but the underlying Vulkan does.
#[cfg(any(target_os = "linux", target_os = "windows"))]
fn memory_bytes(adapter: &wgpu::Adapter) -> Option<u64> {
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the handles are only queried for properties, and nothing derived from them outlives the adapter.
    let heaps = unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let properties =
            vulkan.shared_instance().raw_instance().get_physical_device_memory_properties(vulkan.raw_physical_device());
        properties.memory_heaps.into_iter().take(properties.memory_heap_count as usize)
    };
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

#[cfg(not(any(target_os = "linux", target_os = "windows")))]
fn memory_bytes(_: &wgpu::Adapter) -> Option<u64> {
    None
}

fn choose_adapter(found: Vec<wgpu::Adapter>, wanted: Option<&str>) -> Result<wgpu::Adapter, GpuError> {
    let names: Vec<String> = found.iter().enumerate().map(|(i, a)| format!("{i}: {}", a.get_info().name)).collect();
    let Some(wanted) = wanted else {
        return found.into_iter().next().ok_or_else(|| GpuError::NoDevice("no driver offers one".into()));
    };
    let matches = |(index, adapter): &(usize, wgpu::Adapter)| match wanted.parse::<usize>() {
        Ok(number) => number == *index,
        Err(_) => adapter.get_info().name.to_lowercase().contains(&wanted.to_lowercase()),
    };
    let chosen = found.into_iter().enumerate().find(matches);
    chosen.map(|(_, adapter)| adapter).ok_or_else(|| {
        GpuError::NoDevice(format!(
            "asked for `{wanted}`, found {}",
            if names.is_empty() { "none".into() } else { names.join(", ") }
        ))
    })
}

impl Gpu {
    /// Opens a device.
    ///
    /// # Errors
    /// There is no device, or it cannot be opened.
    pub async fn open(options: &GpuOptions) -> Result<Gpu, GpuError> {
        let instance = instance();
        let adapter = choose_adapter(adapters(&instance, options.low_power).await, options.device.as_deref())?;
        let mut capabilities = capabilities(&instance, &adapter, options.disable);
        if let Some(limit) = options.max_binding_bytes {
            capabilities.max_binding_bytes = capabilities.max_binding_bytes.min(limit);
        }
        let is_cpu = adapter.get_info().device_type == wgpu::DeviceType::Cpu;
        let mut wanted = wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY;
        // SAFETY: the one experimental feature is cooperative matrices, and a device on which a small product of them
        // is wrong does not use them.
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if capabilities.matrix_size.is_some() {
            wanted |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("bayan"),
            required_features: adapter.features() & wanted,
            required_limits: adapter.limits(),
            // Weights are a few large buffers: pooling them in blocks of 256 MiB left a fifth of the blocks of a 2.3 GB
            // model unused.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            experimental_features,
            ..Default::default()
        };
        let opened = match options.purpose {
            Purpose::Compile => open_with_reports(&adapter, &descriptor),
            Purpose::Run | Purpose::Link => adapter.request_device(&descriptor).await.map_err(|e| e.to_string()),
        };
        let (device, queue) =
            opened.map_err(|reason| GpuError::OpenFailed { device: capabilities.name.clone(), reason })?;
        let first_error = Arc::new(Mutex::new(None));
        let allocated = Arc::new(Meter::default());
        let on_lost = OnLost::default();
        catch_errors(&device, &first_error, &allocated, &on_lost);
        let inner = Inner {
            device,
            queue,
            purpose: options.purpose,
            kernels: Mutex::default(),
            staging: Mutex::default(),
            allocated,
            first_error,
            on_lost,
        };
        let mut gpu = Gpu { inner: Arc::new(inner), capabilities: Arc::new(capabilities) };
        let max_loop_turns = if is_cpu && gpu.runs() { gpu.measure_loop_turns().await? } else { None };
        let right = !gpu.runs() || gpu.multiplies_matrices().await?;
        let capabilities = Arc::make_mut(&mut gpu.capabilities);
        if !right {
            capabilities.matrix_size = None;
            capabilities.missing.push(WRONG_MATRICES.to_string());
        }
        capabilities.max_loop_turns = max_loop_turns;
        if let Some(override_capabilities) = options.override_capabilities {
            override_capabilities(capabilities);
        }
        let used = gpu.capabilities();
        tracing::info!("device: {} ({}), {}", used.name, used.driver, used.path());
        Ok(gpu)
    }

    /// What this device offers and what is used of it.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// This device without further features. Kernels, memory and errors are shared with it, so that a text which both
    /// use is compiled once. `Disable::unchecked` is for [`Gpu::open`] alone: it is no part of a kernel's text.
    pub fn without(&self, disable: Disable) -> Gpu {
        let mut capabilities = Capabilities::clone(&self.capabilities);
        capabilities.f16 &= !disable.f16;
        capabilities.subgroups &= !disable.subgroups;
        capabilities.dot &= !disable.dot;
        if disable.f16 || disable.subgroups || disable.matrices {
            capabilities.matrix_size = None;
        }
        capabilities.software &= !disable.software;
        Gpu { inner: self.inner.clone(), capabilities: Arc::new(capabilities) }
    }

    /// What is done with kernels.
    pub fn purpose(&self) -> Purpose {
        self.inner.purpose
    }

    /// Whether kernels run: there is memory to read and write.
    pub fn runs(&self) -> bool {
        self.inner.purpose == Purpose::Run
    }

    /// Bytes in live buffers that were created by [`Gpu::allocate`].
    pub fn allocated_bytes(&self) -> u64 {
        self.inner.allocated.now.load(Ordering::Relaxed)
    }

    /// Whether a buffer belongs to this device: other devices' kernels cannot use it.
    pub fn owns(&self, buffer: &Buffer) -> bool {
        Arc::ptr_eq(buffer.meter(), &self.inner.allocated)
    }

    /// Peak of the bytes in live buffers since the device was opened, or since [`Gpu::reset_peak`].
    pub fn peak_allocated_bytes(&self) -> u64 {
        self.inner.allocated.peak.load(Ordering::Relaxed)
    }

    /// Restarts the measurement of the peak.
    pub fn reset_peak(&self) {
        self.inner.allocated.peak.store(self.allocated_bytes(), Ordering::Relaxed);
    }

    /// Creates a storage buffer filled with zeros.
    ///
    /// # Errors
    /// The size exceeds the device's limit, or memory is exhausted.
    pub fn allocate(&self, what: &str, size_bytes: u64) -> Result<Buffer, GpuError> {
        let limit_bytes = self.capabilities().max_buffer_bytes;
        let size_bytes = size_bytes.max(16).next_multiple_of(16);
        if size_bytes > limit_bytes {
            return Err(GpuError::TooLarge { what: what.to_string(), kind: "buffer", size_bytes, limit_bytes });
        }
        self.check()?;
        let raw = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size: if self.runs() { size_bytes } else { 16 },
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_DST
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: false,
        });
        self.check().map_err(|error| match error {
            GpuError::OutOfMemory { .. } => {
                GpuError::OutOfMemory { what: what.to_string(), size_bytes, allocated_bytes: self.allocated_bytes() }
            }
            other => other,
        })?;
        Ok(Buffer::new(raw, size_bytes, self.inner.allocated.clone()))
    }

    /// Fails with the first error that the device reported since the last call, if any. A lost device stays lost.
    ///
    /// # Errors
    /// The reported error.
    pub fn check(&self) -> Result<(), GpuError> {
        let mut slot = self.inner.first_error.lock().unwrap_or_else(|e| e.into_inner());
        match slot.as_ref() {
            None => Ok(()),
            Some(lost @ GpuError::DeviceLost(_)) => Err(lost.clone()),
            Some(_) => slot.take().map_or(Ok(()), Err),
        }
    }

    /// Sets a callback that is called once when the device is lost, which includes [`Gpu::destroy`]; `None` removes it.
    pub fn set_on_lost(&self, callback: Option<Box<dyn FnOnce(GpuError) + Send>>) {
        *self.inner.on_lost.lock().unwrap_or_else(|e| e.into_inner()) = callback;
    }

    /// Destroys the device, as a driver reset would. Every later call fails with [`GpuError::DeviceLost`].
    pub fn destroy(&self) {
        self.device().destroy();
        report_lost(GpuError::DeviceLost("destroyed".into()), &self.inner.first_error, &self.inner.on_lost);
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    pub(crate) fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    pub(crate) fn kernels(&self) -> MutexGuard<'_, HashMap<String, Kernel>> {
        self.inner.kernels.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn staging(&self) -> MutexGuard<'_, Vec<wgpu::Buffer>> {
        self.inner.staging.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(any(target_os = "linux", target_os = "windows"))]
use crate::capture::open as open_with_reports;

#[cfg(not(any(target_os = "linux", target_os = "windows")))]
fn open_with_reports(
    adapter: &wgpu::Adapter,
    _: &wgpu::DeviceDescriptor<'_>,
) -> Result<(wgpu::Device, wgpu::Queue), String> {
    Err(format!("reports of kernels need Vulkan, and this device uses {:?}", adapter.get_info().backend))
}

/// Stores the first error for [`Gpu::check`]; wgpu's default is to panic.
fn catch_errors(
    device: &wgpu::Device,
    first_error: &Arc<Mutex<Option<GpuError>>>,
    allocated: &Arc<Meter>,
    on_lost: &OnLost,
) {
    let slot = first_error.clone();
    let total = allocated.clone();
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        let error = match error {
            wgpu::Error::OutOfMemory { .. } => GpuError::OutOfMemory {
                what: "a buffer".into(),
                size_bytes: 0,
                allocated_bytes: total.now.load(Ordering::Relaxed),
            },
            other => GpuError::Validation(other.to_string()),
        };
        tracing::error!("{error}");
        slot.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
    }));
    let (slot, on_lost) = (first_error.clone(), on_lost.clone());
    device.set_device_lost_callback(move |reason, message| {
        // A native program destroys its device by dropping it at the end, which is not an error; a browser never does.
        if cfg!(target_arch = "wasm32") || reason != wgpu::DeviceLostReason::Destroyed {
            report_lost(GpuError::DeviceLost(format!("{reason:?}: {message}")), &slot, &on_lost);
        }
    });
}

fn report_lost(error: GpuError, slot: &Mutex<Option<GpuError>>, on_lost: &OnLost) {
    {
        let mut slot = slot.lock().unwrap_or_else(|e| e.into_inner());
        // A loss replaces the errors that led to it, and is not replaced by later ones.
        if !matches!(*slot, Some(GpuError::DeviceLost(_))) {
            *slot = Some(error.clone());
        }
    }
    let callback = on_lost.lock().unwrap_or_else(|e| e.into_inner()).take();
    if let Some(callback) = callback {
        callback(error);
    }
}
