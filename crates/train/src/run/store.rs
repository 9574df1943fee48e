//! Where a run keeps its log and its checkpoints: a directory (`output.rs`), or the memory of a browser's tab.

use std::path::Path;

use crate::checkpoint::{CheckpointFiles, NamedArray, TrainState, TrainedWeights, encode};
use crate::error::{Result, TrainError};
use crate::log_entry::LogEntry;

/// Keeps what a run writes.
pub trait RunStore {
    /// Called before the first step of this process. Entries of the log from `next_step` on belong to steps that are
    /// repeated, and are removed.
    ///
    /// # Errors
    /// A file operation was refused.
    fn open(&mut self, next_step: u64) -> Result<()>;

    /// Adds an entry to the log.
    ///
    /// # Errors
    /// A file operation was refused.
    fn add(&mut self, entry: &LogEntry) -> Result<()>;

    /// Saves a checkpoint, complete or not at all, and returns its place for messages.
    ///
    /// # Errors
    /// A refused file operation, or NaN or infinity in an array; earlier checkpoints are then unchanged.
    fn save(&mut self, state: &TrainState, weights: &TrainedWeights, optimizer: &[NamedArray]) -> Result<String>;

    /// The weights of the checkpoint of this step, which is the newest one or the best.
    ///
    /// # Errors
    /// There is no such checkpoint, or it cannot be read.
    fn weights(&self, step: u64) -> Result<TrainedWeights>;

    /// The place of the newest checkpoint.
    fn newest(&self) -> Option<String>;

    /// Called when the run has ended or failed.
    ///
    /// # Errors
    /// A file operation was refused.
    fn close(&mut self) -> Result<()>;
}

/// Memory: each checkpoint is encoded and passed to the caller, who writes it where a browser can. Nothing of the log
/// is kept, because the caller sees each entry as an event.
pub struct MemoryStore<'a> {
    saved: Option<(u64, TrainedWeights)>,
    on_saved: &'a mut dyn FnMut(u64, CheckpointFiles) -> Result<()>,
}

impl std::fmt::Debug for MemoryStore<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").field("saved", &self.saved.as_ref().map(|(step, _)| step)).finish()
    }
}

impl<'a> MemoryStore<'a> {
    /// `on_saved` gets the number of steps done and the files of each checkpoint.
    pub fn new(on_saved: &'a mut dyn FnMut(u64, CheckpointFiles) -> Result<()>) -> Self {
        Self { saved: None, on_saved }
    }
}

impl RunStore for MemoryStore<'_> {
    fn open(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn add(&mut self, _: &LogEntry) -> Result<()> {
        Ok(())
    }

    fn save(&mut self, state: &TrainState, weights: &TrainedWeights, optimizer: &[NamedArray]) -> Result<String> {
        let place = format!("checkpoint-{}", state.step);
        (self.on_saved)(state.step, encode(Path::new(&place), state, weights, optimizer)?)?;
        self.saved = Some((state.step, weights.clone()));
        Ok(place)
    }

    fn weights(&self, step: u64) -> Result<TrainedWeights> {
        let saved = self.saved.as_ref().filter(|(saved, _)| *saved == step);
        saved.map(|(_, weights)| weights.clone()).ok_or_else(|| {
            let remedy = "leave keep_best out: only the newest checkpoint is kept in memory";
            TrainError::checkpoint(Path::new("memory"), format!("the weights of step {step}"), "none", remedy)
        })
    }

    fn newest(&self) -> Option<String> {
        self.saved.as_ref().map(|(step, _)| format!("checkpoint-{step}"))
    }

    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}
