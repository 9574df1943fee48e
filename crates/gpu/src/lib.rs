//! Runs WGSL kernels on buffers: device, capabilities, linking, pipelines, submission and read-back.
//!
//! This is the only crate that uses wgpu, so that everything above it sees the same small interface natively (Vulkan,
//! Metal, DX12) and in a browser (WebGPU). Kernels are plain text, linked by concatenation and bound in the order in
//! which the text declares its bindings. Rejected: a compute framework, because decoding a token is a fixed list of
//! dispatches that must be cheap to replay, for which a thin layer suffices.

mod buffer;
mod capabilities;
#[cfg(any(target_os = "linux", target_os = "windows"))]
mod capture;
mod commands;
mod device;
mod error;
mod kernel;
mod loop_turns;
mod matrices;
mod oneshot;
mod profile;
mod report;
pub mod shader;

pub use buffer::{Buffer, Contents, Slice};
pub use capabilities::{Capabilities, Disable};
pub use commands::{BufferMove, Dispatch, PendingRead, ReadRequest};
pub use device::{DeviceSummary, Gpu, GpuOptions, Purpose, list_devices};
pub use error::GpuError;
pub use kernel::{Bindings, Kernel};
pub use profile::KernelTime;
pub use report::{Executable, Figure, KernelReport, Statistic};

/// Runs a future to completion on the calling thread: how native code calls the asynchronous interface.
#[cfg(not(target_arch = "wasm32"))]
pub fn block_on<F: Future>(future: F) -> F::Output {
    pollster::block_on(future)
}
