//! All parameters of a model in one arena, for training them all: the model reads its weights where the optimizer
//! writes them.
//!
//! The choice: matrices stand in the arena in the order of the device, which the optimizer does not mind, and a
//! gradient stands as its parameter does. Keeping them row after row beside a packed copy lost: it would take a third
//! more memory and a pass over all weights after every step. Matrices come first and vectors last, since weight decay
//! reaches only matrices, as in transformers.

use std::borrow::Cow;
use std::sync::Arc;

use bayan_gpu::Gpu;
use bayan_tensor::ops::Affine;
use bayan_tensor::{Dtype, State, pack_rows, packed_len, unpacked_rows};
use bayan_weights::{Checkpoint, Stored};

use crate::ModelError;

/// Parts begin at multiples of 256 bytes, as bindings must.
const ALIGNMENT: usize = 64;

/// A matrix or a vector as the model reads it: one tensor of the checkpoint, or several joined.
#[derive(Debug)]
pub struct Parameter {
    /// Name and sizes of each tensor, in order: [rows, columns] of a matrix, any others of a vector.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Columns, if it is a matrix.
    pub columns: Option<usize>,
    /// Whether tensors are stored [columns, rows].
    pub turned: bool,
    /// Where it begins in the arena.
    pub offset: usize,
    /// Its numbers, padding included.
    pub parameter: Arc<State>,
    /// Their gradients.
    pub gradient: Arc<State>,
}

/// All of them.
#[derive(Debug)]
pub struct Parameters {
    /// The numbers.
    pub parameters: Arc<State>,
    /// Their gradients.
    pub gradients: Arc<State>,
    /// Numbers from the beginning that belong to matrices.
    pub decayed: usize,
    /// What stands where.
    pub list: Vec<Parameter>,
    next_matrix: usize,
    next_vector: usize,
}

/// Tensors that are read as one.
#[derive(Debug)]
pub(crate) struct Group {
    /// (name, sizes) of each.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Columns, if they are a matrix.
    pub columns: Option<usize>,
    /// Whether they are stored [columns, rows].
    pub turned: bool,
    /// How the model reads them, where that is changed.
    pub read_as: Option<Affine>,
}

/// Numbers that matrices and vectors of a checkpoint take in the arena, at most (stacked matrices take a little less).
pub fn arena_sizes(checkpoint: &Checkpoint) -> (usize, usize) {
    let (mut matrices, mut vectors) = (0usize, 0usize);
    for tensor in checkpoint.tensors() {
        // Cohere's norms of heads are stored in two dimensions.
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
    /// Room for everything in a checkpoint.
    ///
    /// # Errors
    /// A quantized checkpoint, or out of memory.
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

    /// A part of the arena for tensors that are read as one.
    ///
    /// # Errors
    /// More than the checkpoint's tensors: one of them is read twice.
    pub(crate) fn place(
        &mut self,
        Group { tensors, columns, turned, read_as }: Group,
    ) -> Result<Arc<State>, ModelError> {
        let len = match columns {
            Some(columns) => packed_len(tensors.iter().map(|(_, shape)| shape[usize::from(turned)]).sum(), columns),
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
        self.list.push(Parameter { tensors, columns, turned, offset, parameter: parameter.clone(), gradient });
        Ok(parameter)
    }

    /// (parameter, gradient) of each.
    pub fn pairs(&self) -> Vec<(Arc<State>, Arc<State>)> {
        self.list.iter().map(|p| (p.parameter.clone(), p.gradient.clone())).collect()
    }
}

impl Parameter {
    /// Numbers in the arena.
    pub fn len(&self) -> usize {
        self.parameter.shape()[0]
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name, sizes and numbers of each tensor, from the numbers that stand in its part of the arena.
    pub fn unpack(&self, stored: &[f32]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let mut first = 0;
        let one = |(name, shape): &(String, Vec<usize>)| {
            let start = first;
            let values = match self.columns {
                Some(columns) => {
                    first += shape[usize::from(self.turned)];
                    let rows = unpacked_rows(stored, start..first, columns);
                    if self.turned { turned(&rows, columns) } else { rows }
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

    /// The reverse of [`Parameter::unpack`]; `find` gives the numbers of a tensor of these sizes.
    ///
    /// # Errors
    /// What `find` says.
    pub fn pack<'a, E>(&self, mut find: impl FnMut(&str, &[usize]) -> Result<&'a [f32], E>) -> Result<Vec<f32>, E> {
        let mut stored = vec![0.0; self.len()];
        let mut first = 0;
        for (name, shape) in &self.tensors {
            let values = find(name, shape)?;
            match self.columns {
                Some(columns) => {
                    let rows = if self.turned { Cow::Owned(turned(values, shape[1])) } else { Cow::Borrowed(values) };
                    pack_rows(&rows, first, columns, &mut stored);
                    first += shape[usize::from(self.turned)];
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

/// A matrix of so many columns, column after column.
fn turned(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

/// Why a tensor cannot be trained.
pub(crate) fn untrainable(tensor: &str, expected: &str, got: &str) -> ModelError {
    ModelError::Train { tensor: tensor.to_string(), expected: expected.to_string(), got: got.to_string() }
}
