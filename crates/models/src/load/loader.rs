//! The source of an architecture's tensors while it is loaded: a checkpoint, or a recorder of what is requested.
//!
//! One `load` function per architecture serves both, so that names, sizes and cache needs are written once. Rejected: a
//! second function per architecture that lists its tensors, because the two lists would diverge.

use std::sync::Arc;

use bayan_tensor::{Matrix, State, Values};
use bayan_weights::{Checkpoint, Policy};
use serde_json::Value;

use super::parameters::Parameters;
use super::placement::Placement;
use super::reader::{OnProgress, Reader};
use super::recorder::{DescribedTensor, Recorder};
use crate::ModelError;

/// Provides an architecture's tensors.
pub struct Loader<'a>(Mode<'a>);

enum Mode<'a> {
    /// Tensors are read from a checkpoint.
    Read(Box<Reader<'a>>),
    /// Nothing is read; names and sizes are recorded.
    Record(Recorder<'a>),
}

impl<'a> Loader<'a> {
    /// A loader to the devices of `placement`, or to the host for the interpreter if there are none. With a policy,
    /// dense matrices are quantized while they are read; without one, they keep their stored format, except that bf16
    /// becomes f16.
    ///
    /// # Errors
    /// Invalid sizes in the configuration.
    pub fn new(
        checkpoint: &'a Checkpoint,
        placement: Placement<'a>,
        policy: Option<Policy>,
        on_progress: OnProgress<'a>,
    ) -> Result<Loader<'a>, ModelError> {
        Ok(Loader(Mode::Read(Box::new(Reader::new(checkpoint, placement, policy, on_progress)?))))
    }

    /// A loader that reads nothing, and records the tensors that are requested.
    pub(crate) fn recording(config: &'a Value) -> Loader<'a> {
        Loader(Mode::Record(Recorder::new(config)))
    }

    /// The recorded tensors in the order of loading, and the names of those that were left out.
    pub(crate) fn recorded(self) -> (Vec<DescribedTensor>, Vec<String>) {
        match self.0 {
            Mode::Read(_) => (Vec::new(), Vec::new()),
            Mode::Record(recorder) => (recorder.tensors, recorder.left_out),
        }
    }

    /// States that checkpoints may hold this tensor, and that the model computes the same without it.
    pub fn leave_out(&mut self, name: String) {
        if let Mode::Record(recorder) = &mut self.0 {
            recorder.left_out.push(name);
        }
    }

    /// Loads all tensors into an arena, in which they are trained.
    pub fn train(&mut self, parameters: Parameters) {
        if let Mode::Read(reader) = &mut self.0 {
            reader.train(parameters);
        }
    }

    /// The arena with the loaded tensors.
    pub fn take_parameters(&mut self) -> Option<Parameters> {
        match &mut self.0 {
            Mode::Read(reader) => reader.take_parameters(),
            Mode::Record(_) => None,
        }
    }

    /// Matrices stacked by rows into one. Parts are (tensor name, rows), each [rows, columns].
    ///
    /// # Errors
    /// A tensor that is missing, has other sizes, is damaged, or does not fit the device.
    pub async fn matrix(&mut self, parts: &[(String, usize)], columns: usize) -> Result<Arc<Matrix>, ModelError> {
        match &mut self.0 {
            Mode::Read(reader) => reader.matrix(parts, columns).await,
            Mode::Record(recorder) => Ok(recorder.matrix(parts, columns, false)),
        }
    }

    /// As [`Loader::matrix`], from tensors that are stored as [columns, rows] (GPT-2's `Conv1D`), unless the checkpoint
    /// already transposes them.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn transposed_matrix(
        &mut self,
        parts: &[(String, usize)],
        columns: usize,
    ) -> Result<Arc<Matrix>, ModelError> {
        match &mut self.0 {
            Mode::Read(reader) => reader.transposed_matrix(parts, columns).await,
            Mode::Record(recorder) => Ok(recorder.matrix(parts, columns, true)),
        }
    }

    /// The values of one small tensor of these sizes, to be passed to [`Loader::computed`]; empty if nothing is read.
    /// `first` gives the initial values for a model that is trained from scratch.
    ///
    /// # Errors
    /// As [`Loader::vector`].
    pub async fn values(
        &mut self,
        name: &str,
        shape: &[usize],
        first: fn(usize) -> f32,
    ) -> Result<Vec<f32>, ModelError> {
        match &mut self.0 {
            Mode::Read(reader) => reader.values(name, shape).await,
            Mode::Record(recorder) => {
                recorder.values(name, shape, first);
                Ok(Vec::new())
            }
        }
    }

    /// Vectors concatenated into one f32 state. Parts are (tensor name, length). `plus` is added to every value (Gemma
    /// stores w − 1 for its norms).
    ///
    /// # Errors
    /// A tensor that is missing, has another length, is damaged, or does not fit the device.
    pub async fn vector(&mut self, parts: &[(String, usize)], plus: f32) -> Result<Arc<State>, ModelError> {
        match &mut self.0 {
            Mode::Read(reader) => reader.vector(parts, plus).await,
            Mode::Record(recorder) => Ok(recorder.vector(parts, plus)),
        }
    }

    /// One tensor of these sizes as an f32 state \[its number of values\], times `factor`.
    ///
    /// # Errors
    /// As [`Loader::vector`].
    pub async fn scaled_vector(&mut self, name: &str, shape: &[usize], factor: f32) -> Result<Arc<State>, ModelError> {
        match &mut self.0 {
            Mode::Read(reader) => reader.scaled_vector(name, shape, factor).await,
            Mode::Record(recorder) => Ok(recorder.shaped_vector(name, shape)),
        }
    }

    /// An f32 state of these sizes that is not stored in any tensor, for example a rotary table, on the current device.
    /// If nothing is read, `values` is not called.
    ///
    /// # Errors
    /// Out of memory.
    pub fn computed(
        &self,
        label: &str,
        shape: &[usize],
        values: impl FnOnce() -> Vec<f32>,
    ) -> Result<Arc<State>, ModelError> {
        match &self.0 {
            Mode::Read(reader) => Ok(State::new(reader.gpu(), label, shape, Values::F32(values()))?),
            Mode::Record(_) => Ok(State::without_storage(label, shape)),
        }
    }
}
