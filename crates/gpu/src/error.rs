//! Errors of a device, worded for the user.

/// An error of the device or of a kernel.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GpuError {
    /// No suitable device exists.
    #[error(
        "no GPU was found ({0}); install a Vulkan driver (on Debian and Ubuntu `apt-get install mesa-vulkan-drivers libvulkan1` gives a software one) and run `bayan devices`"
    )]
    NoDevice(String),
    /// The device could not be opened.
    #[error(
        "the device `{device}` could not be opened: {reason}; choose another device with `--device N` (see `bayan devices`)"
    )]
    OpenFailed {
        /// Name of the device.
        device: String,
        /// The driver's message.
        reason: String,
    },
    /// An allocation failed.
    #[error(
        "out of GPU memory while allocating {what} ({size_bytes} bytes; {allocated_bytes} bytes were already allocated); use a smaller format (`--quantize q4_0`), a shorter `--context`, a smaller model, or `--gpu-layers N` to stream the layers after the first N from host memory"
    )]
    OutOfMemory {
        /// What the buffer is for.
        what: String,
        /// Requested size.
        size_bytes: u64,
        /// Bytes that Bayan already has on this device.
        allocated_bytes: u64,
    },
    /// A buffer or binding is larger than the device allows.
    #[error(
        "{what} needs {size_bytes} bytes in one {kind}, and this device allows {limit_bytes}; use a smaller format, a shorter `--context` or another device"
    )]
    TooLarge {
        /// What the buffer or binding is for.
        what: String,
        /// `buffer` or `binding`.
        kind: &'static str,
        /// Requested size.
        size_bytes: u64,
        /// The device's limit.
        limit_bytes: u64,
    },
    /// The device was lost.
    #[error(
        "the device was lost ({0}); the conversation is kept: reload the model, and if it happens again use a smaller model or a shorter context"
    )]
    DeviceLost(String),
    /// The driver or wgpu rejected an operation.
    #[error("the GPU rejected an operation: {0}")]
    Validation(String),
    /// A kernel's WGSL is invalid.
    #[error("kernel `{kernel}`: {reason}")]
    Kernel {
        /// Name of the kernel.
        kernel: String,
        /// The compiler's message.
        reason: String,
    },
}
