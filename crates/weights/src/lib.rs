//! A checkpoint's bytes to named tensors, and back.
//!
//! [`Checkpoint::open`] reads the headers of a safetensors checkpoint, or of a GGUF file, from any [`Source`] (a
//! directory, memory, later a network or the browser's file store) and hands out rows of tensors a few MiB at a time,
//! either as `f32` or as the *planes* of a [`Format`]: the arrays a GPU kernel binds. With the `directory` module
//! (native only) planes are written back as safetensors and whole checkpoints are quantized.
//!
//! The choice: everything is addressed by rows, so that a tensor is never whole in host memory; bytes arrive through
//! one asynchronous trait, so that native and browser share every line. A memory-mapped file lost: it cannot exist in a
//! browser, and a file that shrinks under a mapping kills the process instead of returning an error.
//!
//! Nothing here knows a GPU or a model architecture. Every size read from a file is checked before it is used.

mod bf16;
pub mod checkpoint;
pub mod dtype;
pub mod error;
mod foreign;
pub mod formats;
pub mod gguf;
mod importance;
mod multimodal;
mod packed;
pub mod policy;
mod read;
pub mod safetensors;
pub mod source;
mod torch;

#[cfg(not(target_arch = "wasm32"))]
pub mod directory;

pub use bf16::Bf16;
pub use checkpoint::{Checkpoint, Stored, TensorEntry, stores_transposed};
pub use dtype::Dtype;
pub use error::WeightsError;
pub use foreign::Foreign;
pub use formats::{
    BlockTypes, Codes, F32, FORMATS, Format, Minimum, PlaneSpec, Planes, format_by_name, format_names, joined_format,
};
pub use importance::{Coverage, Importance};
pub use policy::Policy;
pub use source::{LocalFuture, MemorySource, Source};

#[cfg(not(target_arch = "wasm32"))]
pub use directory::{
    CheckpointWriter, DirectorySource, Progress, Report, TensorPlan, TensorReport, WriteOptions, quantize_checkpoint,
};
