//! A tensor of a graph, and what the graph knows about it.

use std::sync::Arc;

use super::state::State;
use super::values::Dtype;

/// A tensor of a graph, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tensor(pub(crate) u32);

impl Tensor {
    /// Its place in the graph's list.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the graph knows about a tensor.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
    /// Its storage when it outlives the step: parameters, the cache, the step's inputs. `None`: the planner's choice.
    pub state: Option<Arc<State>>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
