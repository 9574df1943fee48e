//! Reads a checkpoint's bytes as named tensors, and writes them.
//!
//! [`Checkpoint::open`] reads the headers of a safetensors checkpoint, or of a GGUF file, from any [`Source`] (a
//! directory, memory, a network or the browser's file store) and returns rows of tensors a few MiB at a time, either as
//! `f32` or as the *planes* of a [`Format`]: the arrays that a GPU kernel binds. The `directory` module (native only)
//! writes planes as safetensors and quantizes whole checkpoints.
//!
//! Everything is addressed by rows, so that a tensor is never whole in host memory; bytes arrive through one
//! asynchronous trait, so that native and browser share every line. Rejected: a memory-mapped file, because a browser
//! has none, and because a file that shrinks while mapped kills the process instead of returning an error.
//!
//! This crate does not know GPUs or model architectures. Every size read from a file is checked before it is used.

mod bf16;
pub mod checkpoint;
mod contents;
pub mod dtype;
pub mod error;
mod foreign;
pub mod formats;
pub mod gguf;
mod importance;
pub mod json;
mod multimodal;
mod packed;
pub mod policy;
mod read;
mod requantized;
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
pub use multimodal::{ModelPart, model_part};
pub use policy::Policy;
pub use requantized::Requantized;
pub use source::{LocalFuture, MemorySource, Source};

#[cfg(not(target_arch = "wasm32"))]
pub use directory::{
    CheckpointWriter, DirectorySource, Progress, Report, TensorReport, TensorSpec, WriteOptions, quantize_checkpoint,
};
