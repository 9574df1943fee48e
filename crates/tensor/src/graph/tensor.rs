//! A tensor of a graph, and what the graph stores about it.

use std::sync::Arc;

use super::state::State;
use super::values::Dtype;

/// A tensor of a graph, identified by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tensor(pub(crate) u32);

impl Tensor {
    /// The index in the graph's list.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the graph stores about a tensor.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
    /// Storage that outlives the step: parameters, the cache, the step's inputs. `None`: the planner assigns memory.
    pub state: Option<Arc<State>>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
