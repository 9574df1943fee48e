//! A compiled kernel, and the bindings with which it runs.

use std::sync::Arc;

use crate::shader::{self, Access};
use crate::{Buffer, Capabilities, Gpu, GpuError, KernelReport, Purpose, Slice};

#[derive(Debug)]
struct Inner {
    name: String,
    /// None for a kernel that is only linked.
    pipeline: Option<wgpu::ComputePipeline>,
    report: Option<KernelReport>,
    layouts: Vec<wgpu::BindGroupLayout>,
    bindings: Vec<Vec<(u32, Access)>>,
}

/// A compute pipeline with one entry point, `main`.
#[derive(Debug, Clone)]
pub struct Kernel(Arc<Inner>);

/// Bind groups created for one kernel. They keep their buffers alive.
#[derive(Debug, Clone)]
pub struct Bindings {
    pub(crate) groups: Arc<Vec<wgpu::BindGroup>>,
    /// In a browser a buffer is destroyed with its last handle, even while a bind group refers to it.
    _buffers: Arc<Vec<Buffer>>,
}

impl Kernel {
    /// The name with which the kernel was compiled.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What the driver made of the kernel, on a device that was opened for [`Purpose::Compile`].
    pub fn report(&self) -> Option<&KernelReport> {
        self.0.report.as_ref()
    }

    /// The pipeline of a kernel that runs.
    pub(crate) fn pipeline(&self) -> &wgpu::ComputePipeline {
        self.0.pipeline.as_ref().unwrap_or_else(|| unreachable!("kernel {} is only linked", self.name()))
    }
}

#[cfg(any(target_os = "linux", target_os = "windows"))]
use crate::capture::take as take_report;

#[cfg(not(any(target_os = "linux", target_os = "windows")))]
fn take_report() -> KernelReport {
    KernelReport::default()
}

/// The lines that this device's compiler requires at the start of a kernel's text.
pub(crate) fn preamble(capabilities: &Capabilities) -> String {
    let mut text = String::new();
    if capabilities.f16 {
        text.push_str("enable f16;\n");
    }
    if capabilities.matrix_size.is_some() {
        text.push_str("enable wgpu_cooperative_matrix;\n");
    }
    if capabilities.subgroups && capabilities.browser {
        text.push_str("enable subgroups;\n");
    }
    if capabilities.dot {
        text.push_str("requires packed_4x8_integer_dot_product;\n");
    }
    text
}

impl Gpu {
    /// The kernel for this text; each text is compiled once per device.
    ///
    /// # Errors
    /// The compiler's message, or a binding declaration that cannot be parsed.
    pub fn kernel(&self, name: &str, text: &str) -> Result<Kernel, GpuError> {
        if let Some(kernel) = self.kernels().get(text) {
            return Ok(kernel.clone());
        }
        let kernel = self.compile(name, text)?;
        self.kernels().insert(text.to_string(), kernel.clone());
        Ok(kernel)
    }

    /// Name and text of every compiled kernel, exactly as the device's compiler received it.
    pub fn kernel_texts(&self) -> Vec<(String, String)> {
        let before = preamble(self.capabilities());
        self.kernels().iter().map(|(text, kernel)| (kernel.name().to_string(), format!("{before}{text}"))).collect()
    }

    /// Every compiled kernel, by name.
    pub fn compiled_kernels(&self) -> Vec<Kernel> {
        let mut all: Vec<Kernel> = self.kernels().values().cloned().collect();
        all.sort_by(|a, b| a.name().cmp(b.name()));
        all
    }

    fn compile(&self, name: &str, text: &str) -> Result<Kernel, GpuError> {
        let fail = |reason: String| GpuError::Kernel { kernel: name.to_string(), reason };
        let bindings = shader::bindings(text).map_err(fail)?;
        if self.purpose() == Purpose::Link {
            let inner = Inner { name: name.to_string(), pipeline: None, report: None, layouts: Vec::new(), bindings };
            return Ok(Kernel(Arc::new(inner)));
        }
        tracing::debug!("compiling kernel {name}");
        let source = preamble(self.capabilities()) + text;
        let device = self.device();
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(source.as_str().into()),
        };
        let module = if self.capabilities().unchecked {
            // SAFETY: kernels keep their indices within the sizes that the planner gave the bindings; the op suite runs
            // every kernel with guard words around its outputs, and once with checks on.
            unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        } else {
            device.create_shader_module(descriptor)
        };
        let layouts: Vec<_> = bindings.iter().map(|group| self.layout(name, group)).collect();
        let references: Vec<_> = layouts.iter().map(Some).collect();
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &references,
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: self.capabilities().browser || !self.capabilities().unchecked,
                ..Default::default()
            },
            cache: None,
        });
        self.check().map_err(|error| match error {
            GpuError::Validation(reason) => fail(reason),
            other => other,
        })?;
        let report = (self.purpose() == Purpose::Compile).then(take_report);
        Ok(Kernel(Arc::new(Inner { name: name.to_string(), pipeline: Some(pipeline), report, layouts, bindings })))
    }

    fn layout(&self, name: &str, group: &[(u32, Access)]) -> wgpu::BindGroupLayout {
        let entries: Vec<_> = group
            .iter()
            .map(|&(binding, access)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match access {
                        Access::Uniform => wgpu::BufferBindingType::Uniform,
                        Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                        Access::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        self.device()
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(name), entries: &entries })
    }

    /// Binds `groups[g][i]` to the i-th binding of group g, in the order of the binding numbers in the text. `what` is
    /// the name for error messages.
    ///
    /// # Panics
    /// If the counts differ, which is a programming error in an op and cannot result from a user's data.
    ///
    /// # Errors
    /// A range is larger than this device's largest binding.
    pub fn bind(&self, what: &str, kernel: &Kernel, groups: &[Vec<Slice>]) -> Result<Bindings, GpuError> {
        assert_eq!(groups.len(), kernel.0.bindings.len(), "kernel {}: groups given and declared", kernel.name());
        let mut made = Vec::with_capacity(groups.len());
        for (index, (slices, declared)) in groups.iter().zip(&kernel.0.bindings).enumerate() {
            assert_eq!(
                slices.len(),
                declared.len(),
                "kernel {}: bindings given and declared in group {index}",
                kernel.name()
            );
            let mut entries = Vec::with_capacity(slices.len());
            for (slice, &(binding, _)) in slices.iter().zip(declared) {
                let limit_bytes = self.capabilities().max_binding_bytes;
                if slice.size_bytes > limit_bytes {
                    return Err(GpuError::TooLarge {
                        what: what.to_string(),
                        kind: "binding",
                        size_bytes: slice.size_bytes,
                        limit_bytes,
                    });
                }
                entries.push(wgpu::BindGroupEntry {
                    binding,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: slice.buffer.raw(),
                        offset: slice.offset_bytes,
                        size: std::num::NonZeroU64::new(slice.size_bytes),
                    }),
                });
            }
            if !self.runs() {
                continue;
            }
            made.push(self.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(kernel.name()),
                layout: &kernel.0.layouts[index],
                entries: &entries,
            }));
        }
        let buffers = groups.iter().flatten().map(|slice| slice.buffer.clone()).collect();
        Ok(Bindings { groups: Arc::new(made), _buffers: Arc::new(buffers) })
    }
}
