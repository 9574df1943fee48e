//! Fine-tuning: data, rendering, recipes, schedules, adapter files, data order, logs, checkpoints, memory estimates,
//! and the engine that trains.
//!
//! Everything that decides *what* is trained is plain Rust over bytes and arrays, and is checked against PEFT's and
//! transformers' fixtures without a device; the engine that differentiates the graph receives only token ids, labels
//! and numbers. Rejected: mixing the two, because a wrong label takes a moment to find here and a day to find in a loss
//! curve.

pub mod adapter;
pub mod checkpoint;
pub mod data;
pub mod dataset;
pub mod engine;
pub mod error;
mod files;
pub mod log;
pub mod memory;
pub mod merge;
pub mod order;
pub mod recipe;
pub mod render;
pub mod rng;
pub mod run;
pub mod schedule;
pub mod scratch;

#[cfg(test)]
mod testing;

pub use adapter::write_adapter;
pub use checkpoint::{Checkpoints, NamedArray, Resumed, TrainState, TrainedWeights};
pub use data::{DataFiles, DataOptions, DataReport, DropReason, Example, Examples, Shape};
pub use dataset::{Dataset, Loaded, MicroBatch};
pub use error::{BadRow, Place, Result, TrainError};
pub use log::{LogEntry, RunLog};
pub use memory::{Calibration, MemoryEstimate, MemoryInputs, StateSpaceSizes, adapter_parameters, estimate};
pub use merge::{MergeError, MergeFormat, MergeReport, merge};
pub use order::{Batch, Order, Position, split_validation, steps_per_epoch};
pub use recipe::{LossNormalization, Method, Recipe, RunLength, SaveDtype, TurnEnd};
pub use render::{RenderOptions, Rendered, Renderer, Tokens, dry_run};
pub use rng::Rng;
pub use run::{BaseInfo, EndReason, Event, Observer, Run, RunData, RunError, RunSummary};
pub use schedule::{Schedule, Scheduler};
