//! Checkpoints of a run: everything needed to continue it exactly where it stopped.
//!
//! A checkpoint is a directory `checkpoint-STEP` (in a browser, the files of one) with the weights (an adapter, or all parameters), the optimizer's
//! arrays and one JSON file with the other state. It is written under a temporary name and renamed, so that a kill at
//! any moment leaves the previous checkpoint intact. Rejected: one large file, because PEFT could not open the adapter
//! inside it.

mod arrays;
#[cfg(not(target_arch = "wasm32"))]
mod directory;
mod files;
mod state;

use std::path::PathBuf;

use bayan_models::Adapter;

pub use arrays::NamedArray;
pub(crate) use arrays::encode_arrays;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use arrays::encode_arrays_as;
#[cfg(not(target_arch = "wasm32"))]
pub use directory::Checkpoints;
pub use files::{CheckpointFiles, decode, encode};
pub use state::TrainState;

const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const MODEL: &str = "model.safetensors";
const VERSION: u32 = 1;

/// The trained weights.
#[derive(Debug, Clone, PartialEq)]
pub enum TrainedWeights {
    /// LoRA pairs over a frozen base.
    Adapter(Box<Adapter>),
    /// All parameters.
    Full(Vec<NamedArray>),
}

/// A checkpoint that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Resumed {
    /// Its state.
    pub state: TrainState,
    /// The weights.
    pub weights: TrainedWeights,
    /// The optimizer's arrays, sorted by name.
    pub optimizer: Vec<NamedArray>,
    /// Its directory.
    pub path: PathBuf,
}
