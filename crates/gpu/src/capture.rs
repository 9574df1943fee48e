//! Opens a Vulkan device whose driver reports what it makes of each kernel.
//!
//! wgpu creates pipelines without asking for the report, and shows no handle of a compute pipeline. So the device is
//! opened with functions of this module in the place of `vkCreateComputePipelines` and `vkCreateShaderModule`: they call
//! the driver's, with the flags that make it keep the report, and read the report from the pipeline that wgpu gets.
//! Rejected: a second pipeline from SPIR-V of our own, because it need not be the one that wgpu makes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use ash::khr::pipeline_executable_properties as executable_properties;
use ash::vk::{self, Handle};
use wgpu::hal::api::Vulkan;

use crate::report::{Executable, KernelReport, Statistic};

/// The driver's functions of one device.
#[derive(Clone)]
struct Driver {
    create_pipelines: vk::PFN_vkCreateComputePipelines,
    create_module: vk::PFN_vkCreateShaderModule,
    reports: executable_properties::Device,
}

/// The devices that were opened here, by their handles.
static DRIVERS: Mutex<BTreeMap<u64, Driver>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// The report of the pipeline that this thread created last. wgpu creates pipelines on the calling thread.
    static LAST: RefCell<KernelReport> = RefCell::default();
}

/// The report of the kernel that this thread compiled last.
pub(crate) fn take() -> KernelReport {
    LAST.take()
}

/// Opens the adapter's device with reports.
///
/// # Errors
/// Text that says what the driver lacks, or why it does not open the device.
pub(crate) fn open(
    adapter: &wgpu::Adapter,
    descriptor: &wgpu::DeviceDescriptor<'_>,
) -> Result<(wgpu::Device, wgpu::Queue), String> {
    // SAFETY: the adapter outlives the handles that are taken from it here.
    let Some(vulkan) = (unsafe { adapter.as_hal::<Vulkan>() }) else {
        return Err(format!("reports of kernels need Vulkan, and this device uses {:?}", adapter.get_info().backend));
    };
    if !vulkan.physical_device_capabilities().supports_extension(executable_properties::NAME) {
        return Err("the driver has no VK_KHR_pipeline_executable_properties, which reports what kernels became".into());
    }
    let features = descriptor.required_features;
    let mut extensions = vec![executable_properties::NAME];
    extensions.extend(vulkan.required_device_extensions(features));
    let instance = vulkan.shared_instance().raw_instance();
    let create = |reports: bool| {
        let names: Vec<_> = extensions[usize::from(!reports)..].iter().map(|name| name.as_ptr()).collect();
        let mut enabled = vulkan.physical_device_features(&extensions[1..], features);
        let mut reporting =
            vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
        // wgpu-hal uses the first queue of the first family.
        let families = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
        let info = vk::DeviceCreateInfo::default().queue_create_infos(&families).enabled_extension_names(&names);
        let info = if reports { info.push_next(&mut reporting) } else { info };
        let info = enabled.add_to_device_create(info);
        // SAFETY: as wgpu-hal opens a device, with at most one more extension, which the driver supports.
        let created = unsafe { instance.create_device(vulkan.raw_physical_device(), &info, None) };
        created.map_err(|error| format!("vkCreateDevice: {error}"))
    };
    // A layer between this program and the driver may enable the extension already, and a device that enables it twice
    // cannot be created.
    let mut raw = create(false)?;
    // SAFETY: the device was just created, and nothing else knows it.
    unsafe {
        if instance.get_device_proc_addr(raw.handle(), c"vkGetPipelineExecutablePropertiesKHR".as_ptr()).is_none() {
            raw.destroy_device(None);
            raw = create(true)?;
        }
    }
    let handle = raw.handle();
    let driver = Driver {
        create_pipelines: raw.fp_v1_0().create_compute_pipelines,
        create_module: raw.fp_v1_0().create_shader_module,
        reports: executable_properties::Device::new(instance, &raw),
    };
    DRIVERS.lock().unwrap_or_else(PoisonError::into_inner).insert(handle.as_raw(), driver);
    // SAFETY: all functions are the driver's own for this device, or call them with the same arguments.
    let hooked = unsafe {
        ash::Device::load_with(
            |name| match name.to_bytes() {
                b"vkCreateComputePipelines" => create_pipelines as *const c_void,
                b"vkCreateShaderModule" => create_module as *const c_void,
                _ => instance
                    .get_device_proc_addr(handle, name.as_ptr())
                    .map_or(std::ptr::null(), |f| f as *const c_void),
            },
            handle,
        )
    };
    // SAFETY: the device was created from this adapter with these extensions and features.
    let opened = unsafe {
        vulkan.device_from_raw(
            hooked,
            None,
            &extensions,
            features,
            &descriptor.required_limits,
            &descriptor.memory_hints,
            0,
            0,
        )
    };
    let opened = opened.map_err(|error| error.to_string())?;
    drop(vulkan);
    // SAFETY: the device was created from this adapter, with the features of the descriptor.
    unsafe { adapter.create_device_from_hal::<Vulkan>(opened, descriptor) }.map_err(|error| error.to_string())
}

fn driver(device: vk::Device) -> Option<Driver> {
    DRIVERS.lock().unwrap_or_else(PoisonError::into_inner).get(&device.as_raw()).cloned()
}

/// `vkCreateShaderModule`, keeping the SPIR-V.
unsafe extern "system" fn create_module(
    device: vk::Device,
    info: *const vk::ShaderModuleCreateInfo<'_>,
    allocator: *const vk::AllocationCallbacks<'_>,
    module: *mut vk::ShaderModule,
) -> vk::Result {
    let Some(driver) = driver(device) else { return vk::Result::ERROR_INITIALIZATION_FAILED };
    // SAFETY: the caller passes what `vkCreateShaderModule` demands: a valid pointer to `code_size` bytes.
    unsafe {
        let spirv = std::slice::from_raw_parts((*info).p_code, (*info).code_size / 4).to_vec();
        LAST.set(KernelReport { executables: Vec::new(), spirv });
        (driver.create_module)(device, info, allocator, module)
    }
}

/// `vkCreateComputePipelines`, keeping the reports.
unsafe extern "system" fn create_pipelines(
    device: vk::Device,
    cache: vk::PipelineCache,
    count: u32,
    infos: *const vk::ComputePipelineCreateInfo<'_>,
    allocator: *const vk::AllocationCallbacks<'_>,
    pipelines: *mut vk::Pipeline,
) -> vk::Result {
    let Some(driver) = driver(device) else { return vk::Result::ERROR_INITIALIZATION_FAILED };
    let keep =
        vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
    // SAFETY: the caller passes what `vkCreateComputePipelines` demands: valid pointers to `count` elements.
    unsafe {
        let mut infos = std::slice::from_raw_parts(infos, count as usize).to_vec();
        infos.iter_mut().for_each(|info| info.flags |= keep);
        let result = (driver.create_pipelines)(device, cache, count, infos.as_ptr(), allocator, pipelines);
        if result == vk::Result::SUCCESS {
            for &pipeline in std::slice::from_raw_parts(pipelines, count as usize) {
                let executables = executables(&driver.reports, pipeline);
                LAST.with_borrow_mut(|last| last.executables = executables);
            }
        }
        result
    }
}

/// What the driver says of a pipeline; what it fails to say is left out.
///
/// # Safety
/// The pipeline must be of the device, and created with both flags that keep reports.
unsafe fn executables(reports: &executable_properties::Device, pipeline: vk::Pipeline) -> Vec<Executable> {
    let info = vk::PipelineInfoKHR::default().pipeline(pipeline);
    // SAFETY: the caller's promise.
    let properties = unsafe { reports.get_pipeline_executable_properties(&info) }.unwrap_or_default();
    let text =
        |name: Result<&std::ffi::CStr, _>| name.map_or(String::new(), |name| name.to_string_lossy().into_owned());
    let mut all = Vec::with_capacity(properties.len());
    for (index, executable) in properties.iter().enumerate() {
        let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(index as u32);
        // SAFETY: the caller's promise.
        let statistics = unsafe { reports.get_pipeline_executable_statistics(&info) }.unwrap_or_default();
        let value = |statistic: &vk::PipelineExecutableStatisticKHR<'_>| {
            // SAFETY: the format says which field of the union is set.
            unsafe {
                match statistic.format {
                    vk::PipelineExecutableStatisticFormatKHR::BOOL32 => f64::from(statistic.value.b32),
                    vk::PipelineExecutableStatisticFormatKHR::INT64 => statistic.value.i64 as f64,
                    vk::PipelineExecutableStatisticFormatKHR::UINT64 => statistic.value.u64 as f64,
                    _ => statistic.value.f64,
                }
            }
        };
        all.push(Executable {
            name: text(executable.name_as_c_str()),
            subgroup_size: executable.subgroup_size,
            statistics: statistics
                .iter()
                .map(|statistic| Statistic { name: text(statistic.name_as_c_str()), value: value(statistic) })
                .collect(),
            // SAFETY: the caller's promise.
            assembly: unsafe { assembly(reports, &info) },
        });
    }
    all
}

/// The machine code as text.
///
/// # Safety
/// As [`executables`].
unsafe fn assembly(
    reports: &executable_properties::Device,
    info: &vk::PipelineExecutableInfoKHR<'_>,
) -> Option<String> {
    // SAFETY: the caller's promise; the first call asks for sizes, and the second fills buffers of these sizes.
    unsafe {
        let mut found = reports.get_pipeline_executable_internal_representations(info).ok()?;
        let mut bytes: Vec<Vec<u8>> = found.iter().map(|one| vec![0; one.data_size]).collect();
        for (one, bytes) in found.iter_mut().zip(&mut bytes) {
            one.p_data = bytes.as_mut_ptr().cast();
        }
        let mut count = found.len() as u32;
        let fill = reports.fp().get_pipeline_executable_internal_representations_khr;
        let result = fill(reports.device(), info, &mut count, found.as_mut_ptr());
        if result != vk::Result::SUCCESS {
            return None;
        }
        let is_assembly = |one: &vk::PipelineExecutableInternalRepresentationKHR<'_>| {
            one.is_text != 0 && one.name_as_c_str().is_ok_and(|name| name.to_string_lossy().contains("ssembly"))
        };
        let index = found.iter().position(is_assembly)?;
        let text = String::from_utf8_lossy(&bytes[index]);
        Some(text.trim_end_matches('\0').to_string())
    }
}
