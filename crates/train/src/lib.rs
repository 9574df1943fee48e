//! Fine-tuning: data, rendering, recipes, schedules, adapter files, data order, logs, checkpoints, memory estimates,
//! and the engine that trains.
//!
//! Everything that decides *what* is trained is plain Rust over bytes and arrays, and is checked against PEFT's and
//! transformers' fixtures without a device; the engine that differentiates the graph receives only token ids, labels
//! and numbers. Rejected: mixing the two, because a wrong label takes a moment to find here and a day to find in a loss
//! curve.
//!
//! In a browser there are no files: the modules that write a run's directory are left out there, and the page gets
//! checkpoints and results as bytes.

#[cfg(not(target_arch = "wasm32"))]
pub mod adapter;
pub mod checkpoint;
pub mod data;
pub mod dataset;
pub mod engine;
pub mod error;
#[cfg(not(target_arch = "wasm32"))]
mod files;
#[cfg(not(target_arch = "wasm32"))]
pub mod log;
mod log_entry;
pub mod memory;
#[cfg(not(target_arch = "wasm32"))]
pub mod merge;
pub mod order;
pub mod recipe;
pub mod render;
pub mod rng;
pub mod run;
pub mod schedule;
#[cfg(not(target_arch = "wasm32"))]
pub mod scratch;

#[cfg(test)]
mod testing;

#[cfg(not(target_arch = "wasm32"))]
pub use adapter::write_adapter;
#[cfg(not(target_arch = "wasm32"))]
pub use checkpoint::Checkpoints;
pub use checkpoint::{NamedArray, Resumed, TrainState, TrainedWeights};
pub use data::{DataFile, DataFiles, DataOptions, DataReport, DropReason, Example, Examples, Shape};
pub use dataset::{Dataset, Loaded, MicroBatch};
pub use error::{BadRow, Place, Result, TrainError};
#[cfg(not(target_arch = "wasm32"))]
pub use log::RunLog;
pub use log_entry::LogEntry;
pub use memory::{Calibration, MemoryEstimate, MemoryInputs, StateSpaceSizes, adapter_parameters, estimate};
#[cfg(not(target_arch = "wasm32"))]
pub use merge::{MergeError, MergeFormat, MergeReport, merge};
pub use order::{Batch, Order, Position, split_validation, steps_per_epoch};
pub use recipe::{LossNormalization, Method, Recipe, RunLength, SaveDtype, TurnEnd};
pub use render::{RenderOptions, Rendered, Renderer, Tokens, dry_run};
pub use rng::Rng;
#[cfg(not(target_arch = "wasm32"))]
pub use run::DirectoryStore;
pub use run::{BaseInfo, EndReason, Event, MemoryStore, Observer, Run, RunData, RunError, RunStore, RunSummary};
pub use schedule::{Schedule, Scheduler};
