//! A flat list of operations in program order, recorded once per shape and replayed for every step.
//!
//! Rejected: a tree of lazily evaluated values. A list runs in the order in which the model file states the operations,
//! the planner sees all of it, and training differentiates it in reverse.

pub(crate) mod host;
mod interpret;
mod matrix;
mod op;
mod state;
mod tensor;
mod values;

use std::sync::Arc;

pub use interpret::{interpret, nmse};
pub(crate) use matrix::SHARD_ROWS;
pub use matrix::{
    GROUP, Matrix, MatrixBuilder, Shard, Slots, Trained, pack_rows, packed_len, row_bytes, unpacked_rows,
};
pub(crate) use op::elements;
pub use op::{Op, Operand};
pub use state::{Affine, Move, State, StateRange, copy_within};
pub use tensor::{Tensor, TensorInfo};
pub use values::{Dtype, ELEMENT_BYTES, Values};
pub(crate) use values::{pack_f16, unpack_f16};

/// One operation of a graph.
#[derive(Debug, Clone)]
pub struct Node {
    /// The operation.
    pub op: Arc<dyn Op>,
    /// The tensors that it reads.
    pub inputs: Vec<Tensor>,
    /// The tensors that it writes. A tensor with a state is updated in place.
    pub outputs: Vec<Tensor>,
}

/// A recorded computation.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    tensors: Vec<TensorInfo>,
    nodes: Vec<Node>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Graph {
        Graph::default()
    }

    /// The operations in program order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The tensors, by index.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Shape, element type and state of a tensor.
    pub fn info(&self, tensor: Tensor) -> &TensorInfo {
        &self.tensors[tensor.index()]
    }

    /// Sizes of a tensor, outermost first.
    pub fn shape(&self, tensor: Tensor) -> &[usize] {
        &self.info(tensor).shape
    }

    /// The last size of a tensor.
    pub fn width(&self, tensor: Tensor) -> usize {
        self.shape(tensor).last().copied().unwrap_or(1)
    }

    /// The product of all sizes of a tensor but the last.
    pub fn rows(&self, tensor: Tensor) -> usize {
        let shape = self.shape(tensor);
        shape[..shape.len().saturating_sub(1)].iter().product()
    }

    /// A new intermediate tensor.
    pub fn tensor(&mut self, shape: &[usize], dtype: Dtype) -> Tensor {
        self.push(TensorInfo { shape: shape.to_vec(), dtype, state: None })
    }

    /// The tensor of a state. The same state always gives the same tensor.
    pub fn state(&mut self, state: &Arc<State>) -> Tensor {
        let known = self.tensors.iter().position(|t| t.state.as_ref().is_some_and(|s| Arc::ptr_eq(s, state)));
        match known {
            Some(index) => Tensor(index as u32),
            None => self.push(TensorInfo {
                shape: state.shape().to_vec(),
                dtype: state.dtype(),
                state: Some(state.clone()),
            }),
        }
    }

    fn push(&mut self, info: TensorInfo) -> Tensor {
        self.tensors.push(info);
        Tensor(self.tensors.len() as u32 - 1)
    }

    /// Records an operation on existing tensors.
    pub fn record(&mut self, op: impl Op, inputs: &[Tensor], outputs: &[Tensor]) {
        self.nodes.push(Node { op: Arc::new(op), inputs: inputs.to_vec(), outputs: outputs.to_vec() });
    }

    pub(crate) fn push_node(&mut self, node: Node) {
        self.nodes.push(node);
    }

    pub(crate) fn insert_node(&mut self, index: usize, node: Node) {
        self.nodes.insert(index, node);
    }

    pub(crate) fn pop_node(&mut self) -> Option<Node> {
        self.nodes.pop()
    }

    /// Records an operation with one new f32 output of the given sizes.
    pub fn apply(&mut self, op: impl Op, inputs: &[Tensor], shape: &[usize]) -> Tensor {
        let output = self.tensor(shape, Dtype::F32);
        self.record(op, inputs, &[output]);
        output
    }

    /// x [T, H, d] viewed as [T, H d]; nothing is computed.
    pub fn flatten(&mut self, x: Tensor) -> Tensor {
        let shape = self.shape(x).to_vec();
        if let (Some(info), [first, rest @ ..]) = (self.tensors.get_mut(x.index()), shape.as_slice()) {
            info.shape = vec![*first, rest.iter().product()];
        }
        x
    }

    /// x viewed with these sizes, in the same row-major order; nothing is computed.
    pub fn reshape(&mut self, x: Tensor, shape: &[usize]) -> Tensor {
        assert_eq!(self.info(x).len(), shape.iter().product::<usize>(), "reshape: number of elements");
        if let Some(info) = self.tensors.get_mut(x.index()) {
            info.shape = shape.to_vec();
        }
        x
    }

    /// The list up to and including the last operation that writes a state: all that a step needs when its results are
    /// not read.
    pub fn until_last_state(&self) -> Graph {
        let writes = |node: &Node| node.outputs.iter().any(|&output| self.info(output).state.is_some());
        let end = self.nodes.iter().rposition(writes).map_or(self.nodes.len(), |index| index + 1);
        self.with_nodes(self.nodes[..end].to_vec())
    }

    /// Stores a tensor in a state, which outlives the step.
    pub(crate) fn set_state(&mut self, tensor: Tensor, state: Arc<State>) {
        self.tensors[tensor.index()].state = Some(state);
    }

    /// A graph with the same tensors and another list of operations: the result of a rewrite.
    pub(crate) fn with_nodes(&self, nodes: Vec<Node>) -> Graph {
        Graph { tensors: self.tensors.clone(), nodes }
    }
}
