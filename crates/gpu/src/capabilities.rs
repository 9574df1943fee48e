//! What the device can do, determined once when it is opened: features that exist, are used, or are missing.

/// Features that can be disabled manually, to test a path or to work around a driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Disable {
    /// Do not use 16-bit floating-point arithmetic.
    pub f16: bool,
    /// Do not use subgroup operations.
    pub subgroups: bool,
    /// Do not use packed 8-bit integer dot products.
    pub dot: bool,
    /// Do not use cooperative matrices.
    pub matrices: bool,
    /// Keep the bounds checks, which browsers always have.
    pub unchecked: bool,
    /// Treat a software device as hardware: run the kernels of real GPUs, to test them without one.
    pub software: bool,
}

impl Disable {
    /// Parses `f16,subgroups,dot,matrices,unchecked,software`.
    ///
    /// # Errors
    /// An unknown word; the error lists the known ones.
    pub fn parse(text: &str) -> Result<Disable, String> {
        let mut disable = Disable::default();
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match word {
                "f16" => disable.f16 = true,
                "subgroups" => disable.subgroups = true,
                "dot" => disable.dot = true,
                "matrices" => disable.matrices = true,
                "unchecked" => disable.unchecked = true,
                "software" => disable.software = true,
                _ => {
                    return Err(format!(
                        "unknown feature `{word}`: expected f16, subgroups, dot, matrices, unchecked or software"
                    ));
                }
            }
        }
        Ok(disable)
    }
}

/// What the device offers, and what Bayan uses of it.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// The device's name, as the driver reports it.
    pub name: String,
    /// Driver name and version.
    pub driver: String,
    /// Vulkan, Metal, Dx12 or BrowserWebGpu.
    pub backend: String,
    /// Discrete, integrated, virtual, CPU or other.
    pub device_type: String,
    /// Whether the device is a CPU that implements the GPU interface in software.
    pub software: bool,
    /// 16-bit arithmetic is used (`shader-f16`).
    pub f16: bool,
    /// Subgroup operations are used.
    pub subgroups: bool,
    /// Smallest and largest subgroup size.
    pub subgroup_size: (u32, u32),
    /// Packed 8-bit dot products are used.
    pub dot: bool,
    /// Side of the square cooperative matrices that are used, with f16 factors and f32 sums: 16 or 8. `None` if they are
    /// not used.
    pub matrix_size: Option<u32>,
    /// Timestamps around passes are available.
    pub timestamps: bool,
    /// Shaders run without bounds checks (native only).
    pub unchecked: bool,
    /// Whether the shader compiler is a browser's (it requires `enable subgroups;`, which naga rejects).
    pub browser: bool,
    /// Bytes of the device's own memory, where the driver reports it (Vulkan does).
    pub memory_bytes: Option<u64>,
    /// Largest range of one binding, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Workgroup memory in bytes.
    pub max_workgroup_bytes: u32,
    /// Largest number of invocations in one workgroup.
    pub max_workgroup_size: u32,
    /// Largest number of workgroups in one dimension of a dispatch.
    pub max_workgroups: u32,
    /// Largest number of storage buffers that one kernel may bind.
    pub max_storage_buffers: u32,
    /// Total number of loop iterations (turns) after which an invocation's loops silently end, measured when a software
    /// device is opened. `None` if there is no such limit, or nothing was measured.
    pub max_loop_turns: Option<u64>,
    /// Alignment of binding offsets, in bytes.
    pub offset_alignment: u32,
    /// The vector instructions of a CPU; `None` on GPUs.
    pub instructions: Option<&'static str>,
    /// Features that the device lacks, each with its consequence, as text for users.
    pub missing: Vec<String>,
}

impl Capabilities {
    /// A short name of the features in use, such as `f16+subgroups+dot+matrices`, or a CPU's instructions.
    pub fn path(&self) -> String {
        if let Some(instructions) = self.instructions {
            return instructions.into();
        }
        let mut parts = Vec::new();
        let matrices = self.matrix_size.is_some();
        for (on, name) in [(self.f16, "f16"), (self.subgroups, "subgroups"), (self.dot, "dot"), (matrices, "matrices")]
        {
            if on {
                parts.push(name);
            }
        }
        if parts.is_empty() { "plain".into() } else { parts.join("+") }
    }
}
