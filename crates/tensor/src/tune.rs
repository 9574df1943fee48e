//! Kernel shapes for a device.

/// The shape of the matrix-vector kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatvecShape {
    /// Rows of one workgroup.
    pub rows: usize,
    /// Invocations of one workgroup.
    pub threads: usize,
}

/// The chosen shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Products with few tokens.
    pub matvec: MatvecShape,
}

impl Tuning {
    /// Sensible shapes for this device, without measuring.
    pub fn defaults(capabilities: &bayan_gpu::Capabilities) -> Tuning {
        let matvec = if capabilities.software { MatvecShape { rows: 8, threads: 8 } } else { MatvecShape { rows: 4, threads: 64 } };
        Tuning { matvec }
    }
}
