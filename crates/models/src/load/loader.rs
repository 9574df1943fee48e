//! Where the `load` of an architecture gets its tensors from: a checkpoint, or a record of what it asks for.
//!
//! One `load` for each architecture serves both, so that names, sizes and cache needs are written once. Rejected: a
//! second function for each architecture that lists its tensors, because the two lists drift apart.

use std::sync::Arc;

use bayan_tensor::{Matrix, State, Values};
use bayan_weights::{Checkpoint, Policy};
use serde_json::Value;

use super::parameters::Parameters;
use super::placement::Placement;
use super::reader::{OnProgress, Reader};
use super::recorder::{DescribedTensor, Recorder};
use crate::ModelError;

/// Gives an architecture its tensors.
pub struct Loader<'a>(Mode<'a>);

enum Mode<'a> {
    /// Tensors are read from a checkpoint.
    Read(Box<Reader<'a>>),
    /// Nothing is read: names and sizes are recorded.
    Record(Recorder<'a>),
}

impl<'a> Loader<'a> {
    /// A loader onto the devices of `placement`, or onto the host for the interpreter where it has none. With a policy,
    /// dense matrices are quantized as they stream; without, they keep what is stored, bf16 as f16.
    ///
    /// # Errors
    /// Impossible sizes in the configuration.
    pub fn new(
        checkpoint: &'a Checkpoint,
        placement: Placement<'a>,
        policy: Option<Policy>,
        on_progress: OnProgress<'a>,
    ) -> Result<Loader<'a>, ModelError> {
        Ok(Loader(Mode::Read(Box::new(Reader::new(checkpoint, placement, policy, on_progress)?))))
    }

    /// A loader that reads nothing and records the tensors that it is asked for.
    pub(crate) fn recording(config: &'a Value) -> Loader<'a> {
        Loader(Mode::Record(Recorder::new(config)))
    }

    /// What was recorded, in the order of loading.
    pub(crate) fn recorded(self) -> Vec<DescribedTensor> {
        match self.0 {
            Mode::Read(_) => Vec::new(),
            Mode::Record(recorder) => recorder.tensors,
        }
    }

    /// Loads everything into an arena, to be trained.
    pub fn train(&mut self, parameters: Parameters) {
        if let Mode::Read(reader) = &mut self.0 {
            reader.train(parameters);
        }
    }

    /// The arena, filled.
    pub fn take_parameters(&mut self) -> Option<Parameters> {
        match &mut self.0 {
            Mode::Read(reader) => reader.take_parameters(),
            Mode::Record(_) => None,
        }
    }

    /// Matrices stacked by rows into one: parts are (tensor name, rows), each [rows, columns].
    ///
    /// # Errors
    /// A tensor that is missing, has other sizes, is damaged, or does not fit the device.
    pub async fn matrix(&mut self, parts: &[(String, usize)], columns: usize) -> Result<Arc<Matrix>, ModelError> {
        match &mut self.0 {
            Mode::Read(reader) => reader.matrix(parts, columns).await,
            Mode::Record(recorder) => Ok(recorder.matrix(parts, columns, false)),
        }
    }

    /// As [`Loader::matrix`], from tensors stored as [columns, rows] (GPT-2's `Conv1D`) unless they have been
    /// transposed already.
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

    /// The numbers of one small tensor of these sizes, to be passed to [`Loader::computed`]; none where nothing is
    /// read. `first` gives each of them in a model that is trained from nothing.
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

    /// Vectors joined into one f32 state: parts are (tensor name, length). `plus` is added to every value (Gemma's
    /// norms hold w − 1).
    ///
    /// # Errors
    /// A tensor that is missing, has another length, is damaged, or does not fit the device.
    pub async fn vector(&mut self, parts: &[(String, usize)], plus: f32) -> Result<Arc<State>, ModelError> {
        match &mut self.0 {
            Mode::Read(reader) => reader.vector(parts, plus).await,
            Mode::Record(recorder) => Ok(recorder.vector(parts, plus)),
        }
    }

    /// One tensor of these sizes as an f32 state \[all of it\], times `factor`.
    ///
    /// # Errors
    /// As [`Loader::vector`].
    pub async fn scaled_vector(&mut self, name: &str, shape: &[usize], factor: f32) -> Result<Arc<State>, ModelError> {
        match &mut self.0 {
            Mode::Read(reader) => reader.scaled_vector(name, shape, factor).await,
            Mode::Record(recorder) => Ok(recorder.shaped_vector(name, shape)),
        }
    }

    /// An f32 state of these sizes that no tensor holds, such as a rotary table, where the model is loaded now. Where
    /// nothing is read, `values` is not asked.
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
