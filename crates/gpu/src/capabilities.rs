//! What the device can do, chosen once and visible: which features were found, which are used, which are missing.

/// Features that can be turned off by hand, to test a path or to work around a driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Disable {
    /// Do not use 16-bit floating-point arithmetic.
    pub f16: bool,
    /// Do not use subgroup operations.
    pub subgroups: bool,
    /// Do not use packed 8-bit integer dot products.
    pub dot: bool,
    /// Keep the bounds checks that browsers always have.
    pub unchecked: bool,
    /// Treat a software device as hardware: run the kernel shapes of real GPUs, to test them without one.
    pub software: bool,
}

impl Disable {
    /// Parses `f16,subgroups,dot,unchecked,software`.
    ///
    /// # Errors
    /// An unknown word, with the known ones.
    pub fn parse(text: &str) -> Result<Disable, String> {
        let mut disable = Disable::default();
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match word {
                "f16" => disable.f16 = true,
                "subgroups" => disable.subgroups = true,
                "dot" => disable.dot = true,
                "unchecked" => disable.unchecked = true,
                "software" => disable.software = true,
                _ => {
                    return Err(format!(
                        "unknown feature `{word}`: expected f16, subgroups, dot, unchecked or software"
                    ));
                }
            }
        }
        Ok(disable)
    }
}

/// What the device offers and what Bayan uses of it.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// Adapter name as the driver gives it.
    pub name: String,
    /// Driver name and version.
    pub driver: String,
    /// Vulkan, Metal, Dx12 or BrowserWebGpu.
    pub backend: String,
    /// Discrete, integrated, virtual, CPU or other.
    pub device_type: String,
    /// Whether the device is a CPU that pretends to be a GPU.
    pub software: bool,
    /// 16-bit arithmetic is used (`shader-f16`).
    pub f16: bool,
    /// Subgroup operations are used.
    pub subgroups: bool,
    /// Smallest and largest subgroup size.
    pub subgroup_size: (u32, u32),
    /// Packed 8-bit dot products are used.
    pub dot: bool,
    /// Timestamps around passes are available.
    pub timestamps: bool,
    /// Shaders run without bounds checks (native only).
    pub unchecked: bool,
    /// The shader compiler is a browser's (it wants `enable subgroups;`, naga rejects it).
    pub browser: bool,
    /// Memory of its own, where the driver tells (Vulkan does).
    pub memory_bytes: Option<u64>,
    /// Largest range that one binding may cover.
    pub max_binding_bytes: u64,
    /// Largest buffer.
    pub max_buffer_bytes: u64,
    /// Workgroup memory in bytes.
    pub max_workgroup_bytes: u32,
    /// Invocations in one workgroup.
    pub max_workgroup_size: u32,
    /// Workgroups in one dimension of a dispatch.
    pub max_workgroups: u32,
    /// Storage buffers that one kernel may bind.
    pub max_storage_buffers: u32,
    /// Turns of all its loops after which an invocation's loops end without an error, as measured when a software
    /// device was opened; `None` where there is no such limit, or nothing was measured.
    pub max_loop_turns: Option<u64>,
    /// Alignment of binding offsets.
    pub offset_alignment: u32,
    /// Features that the device lacks and their consequence, for people.
    pub missing: Vec<String>,
}

impl Capabilities {
    /// A short name of the paths in use, such as `f16+subgroups+dot`.
    pub fn path(&self) -> String {
        let mut parts = Vec::new();
        for (on, name) in [(self.f16, "f16"), (self.subgroups, "subgroups"), (self.dot, "dot")] {
            if on {
                parts.push(name);
            }
        }
        if parts.is_empty() { "plain".into() } else { parts.join("+") }
    }
}
