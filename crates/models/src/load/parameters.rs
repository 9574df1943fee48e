//! All parameters of a model in one arena, for training all of them: the model reads its weights from the memory that
//! the optimizer updates.
//!
//! Matrices are stored in the arena in packed order, which makes no difference to the optimizer, and gradients have the
//! order of their parameters. Rejected: row-major parameters with a packed copy, because they take a third more memory
//! and a pass over all weights after every step. Matrices come first and vectors last, because weight decay applies
//! only to matrices, as in transformers.

use std::borrow::Cow;
use std::sync::Arc;

use bayan_gpu::Gpu;
use bayan_tensor::ops::Affine;
use bayan_tensor::{Dtype, State, pack_rows, packed_len, unpacked_rows};
use bayan_weights::{Checkpoint, Stored};

use crate::ModelError;

/// Number of values in 256 bytes: parts of the arena are bound, so they begin at multiples of that.
const ALIGNMENT: usize = 64;

/// A matrix or vector as the model reads it: one tensor of the checkpoint, or several joined.
#[derive(Debug)]
pub struct Parameter {
    /// Name and sizes of each tensor, in order: [rows, columns] for a matrix, any sizes for a vector.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Number of columns, if this is a matrix.
    pub columns: Option<usize>,
    /// Whether the tensors are stored transposed, as [columns, rows].
    pub transposed: bool,
    /// Index of the first value in the arena.
    pub offset: usize,
    /// The values in the arena, padding included.
    pub parameter: Arc<State>,
    /// The gradients of the values.
    pub gradient: Arc<State>,
}

/// All trained parameters.
#[derive(Debug)]
pub struct Parameters {
    /// The arena of the values.
    pub parameters: Arc<State>,
    /// The arena of the gradients.
    pub gradients: Arc<State>,
    /// Number of values, from the beginning, that belong to matrices; weight decay applies to them.
    pub decayed: usize,
    /// The parameters in the arena.
    pub list: Vec<Parameter>,
    next_matrix: usize,
    next_vector: usize,
}

/// Tensors that are read as one matrix or vector.
#[derive(Debug)]
pub(crate) struct Group {
    /// Name and sizes of each tensor.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Number of columns, if they form a matrix.
    pub columns: Option<usize>,
    /// Whether they are stored transposed, as [columns, rows].
    pub transposed: bool,
    /// The transformation that the model applies when it reads the values, if any.
    pub read_as: Option<Affine>,
}

/// Upper bounds of the numbers of values that a checkpoint's matrices and vectors take in the arena; stacked matrices
/// take slightly fewer.
pub fn arena_sizes(checkpoint: &Checkpoint) -> (usize, usize) {
    let (mut matrices, mut vectors) = (0usize, 0usize);
    for tensor in checkpoint.tensors() {
        // Cohere's head norms are two-dimensional, but no matrices.
        if let (&[rows, columns], false) = (&tensor.shape[..], tensor.name.contains("norm")) {
            let (rows, columns) = if checkpoint.is_transposed(tensor) { (columns, rows) } else { (rows, columns) };
            matrices = matrices.saturating_add(packed_len(rows, columns).next_multiple_of(ALIGNMENT));
        } else {
            vectors = vectors.saturating_add(
                usize::try_from(tensor.count()).unwrap_or(usize::MAX).saturating_add(ALIGNMENT - 1) / ALIGNMENT
                    * ALIGNMENT,
            );
        }
    }
    (matrices, vectors)
}

impl Parameters {
    /// Allocates the arena for all tensors of a checkpoint.
    ///
    /// # Errors
    /// The checkpoint is quantized, or memory is exhausted.
    pub fn reserve(gpu: Option<&Gpu>, checkpoint: &Checkpoint) -> Result<Parameters, ModelError> {
        if let Some(tensor) = checkpoint.tensors().iter().find(|tensor| !matches!(tensor.stored, Stored::Dense(_))) {
            return Err(untrainable(
                &tensor.name,
                "numbers that are not quantized, to train all parameters",
                tensor.stored.name(),
            ));
        }
        let (decayed, vectors) = arena_sizes(checkpoint);
        let len = decayed.saturating_add(vectors).max(ALIGNMENT);
        let zeros = |label: &str| State::zeros(gpu, label, &[len], Dtype::F32);
        let (parameters, gradients) = (zeros("trained parameters")?, zeros("gradients")?);
        Ok(Parameters { parameters, gradients, decayed, list: Vec::new(), next_matrix: 0, next_vector: decayed })
    }

    /// Assigns a part of the arena to tensors that are read as one.
    ///
    /// # Errors
    /// The arena is too small for the tensors, which means that one of them is used twice.
    pub(crate) fn place(
        &mut self,
        Group { tensors, columns, transposed, read_as }: Group,
    ) -> Result<Arc<State>, ModelError> {
        let len = match columns {
            Some(columns) => packed_len(tensors.iter().map(|(_, shape)| shape[usize::from(transposed)]).sum(), columns),
            None => tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum(),
        };
        let (next, end) = match columns {
            Some(_) => (&mut self.next_matrix, self.decayed),
            None => (&mut self.next_vector, self.parameters.shape()[0]),
        };
        let offset = *next;
        if offset + len > end {
            return Err(untrainable(
                &tensors[0].0,
                "each tensor to be used once, to train all parameters",
                "one that is used twice",
            ));
        }
        *next = (offset + len).next_multiple_of(ALIGNMENT);
        let part = |of: &Arc<State>, read_as| State::changed_part(of, &tensors[0].0, &[len], offset, read_as);
        let (parameter, gradient) = (part(&self.parameters, read_as), part(&self.gradients, None));
        self.list.push(Parameter { tensors, columns, transposed, offset, parameter: parameter.clone(), gradient });
        Ok(parameter)
    }

    /// The (parameter, gradient) pairs.
    pub fn pairs(&self) -> Vec<(Arc<State>, Arc<State>)> {
        self.list.iter().map(|p| (p.parameter.clone(), p.gradient.clone())).collect()
    }
}

impl Parameter {
    /// Number of values in the arena.
    pub fn len(&self) -> usize {
        self.parameter.shape()[0]
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name, sizes and values of each tensor, from this parameter's part of the arena.
    pub fn unpack(&self, stored: &[f32]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let mut first = 0;
        let one = |(name, shape): &(String, Vec<usize>)| {
            let start = first;
            let values = match self.columns {
                Some(columns) => {
                    first += shape[usize::from(self.transposed)];
                    let rows = unpacked_rows(stored, start..first, columns);
                    if self.transposed { transposed(&rows, columns) } else { rows }
                }
                None => {
                    first += shape.iter().product::<usize>();
                    stored[start..first].to_vec()
                }
            };
            (name.clone(), shape.clone(), values)
        };
        self.tensors.iter().map(one).collect()
    }

    /// The inverse of [`Parameter::unpack`]; `find` returns the values of the tensor with that name and these sizes.
    ///
    /// # Errors
    /// An error of `find`.
    pub fn pack<'a, E>(&self, mut find: impl FnMut(&str, &[usize]) -> Result<&'a [f32], E>) -> Result<Vec<f32>, E> {
        let mut stored = vec![0.0; self.len()];
        let mut first = 0;
        for (name, shape) in &self.tensors {
            let values = find(name, shape)?;
            match self.columns {
                Some(columns) => {
                    let rows =
                        if self.transposed { Cow::Owned(transposed(values, shape[1])) } else { Cow::Borrowed(values) };
                    pack_rows(&rows, first, columns, &mut stored);
                    first += shape[usize::from(self.transposed)];
                }
                None => {
                    stored[first..first + values.len()].copy_from_slice(values);
                    first += values.len();
                }
            }
        }
        Ok(stored)
    }
}

/// The transpose of a matrix with this number of columns.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

/// The error for a tensor that cannot be trained.
pub(crate) fn untrainable(tensor: &str, expected: &str, got: &str) -> ModelError {
    ModelError::Train { tensor: tensor.to_string(), expected: expected.to_string(), got: got.to_string() }
}
