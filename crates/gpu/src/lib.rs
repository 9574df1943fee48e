//! Runs WGSL kernels on buffers: device, capabilities, linking, pipelines, submission and read-back.
//!
//! This is the only crate that names wgpu, so that everything above it sees the same small interface natively
//! (Vulkan, Metal, DX12) and in a browser (WebGPU). The choice it embodies: kernels are plain text linked by
//! concatenation and bound by the order in which the text declares its bindings; a thin layer of our own instead of
//! a compute framework, because decoding a token is a fixed list of dispatches that has to be replayed cheaply.

mod buffer;
mod capabilities;
mod commands;
mod device;
mod error;
mod kernel;
mod loop_turns;
mod oneshot;
mod profile;
pub mod shader;

pub use buffer::{Buffer, Contents, Slice};
pub use capabilities::{Capabilities, Disable};
pub use commands::{Dispatch, PendingRead, ReadRequest};
pub use device::{AdapterSummary, Gpu, GpuOptions, list_adapters};
pub use error::GpuError;
pub use kernel::{Bindings, Kernel};
pub use profile::KernelTime;

/// Drives a future to its end on the calling thread: the native edge of the asynchronous interface.
#[cfg(not(target_arch = "wasm32"))]
pub fn block_on<F: Future>(future: F) -> F::Output {
    pollster::block_on(future)
}
