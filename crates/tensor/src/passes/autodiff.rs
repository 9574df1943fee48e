//! Reverse-mode differentiation of a recorded list: in reverse order, each op records the operations of its gradient at
//! the end of the same list.
//!
//! Gradients are plain tensors of the same graph, so that the planner shares their memory with everything else and the
//! interpreter can run them. Rejected: a tape of closures, because it would be a second kind of program next to the
//! list. Only tensors that depend on a trainable parameter get a gradient.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::graph::{Dtype, Graph, Matrix, Node, State, Tensor};

/// An operation without a gradient lies between a trainable parameter and the loss.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "operation `{0}` has no gradient, but a trainable parameter lies behind it; freeze that parameter or give the operation a `backward`"
)]
pub struct BackwardError(pub &'static str);

/// Options of [`Graph::backward`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackwardOptions {
    /// Recompute the values inside each segment instead of storing them: less memory for about a third more arithmetic.
    /// Segments end where only a single tensor is alive, which in a transformer is the residual stream between layers.
    pub recompute: bool,
}

/// The interface through which an op records its gradient.
pub struct Backward<'a> {
    graph: &'a mut Graph,
    node: Node,
    index: usize,
    walk: &'a mut Walk,
}

#[derive(Default)]
struct Walk {
    /// By tensor: whether it depends on a trainable parameter.
    needs: Vec<bool>,
    /// By tensor: the first node that writes it.
    producers: Vec<usize>,
    gradients: HashMap<Tensor, Tensor>,
    /// Gradients that outlive the step; contributions are always added in place.
    persistent: Vec<Tensor>,
    /// The tensors to which the gradients of trained matrices are added, by the matrices' states.
    matrices: HashMap<*const State, Tensor>,
}

impl Walk {
    fn resize(&mut self, len: usize) {
        self.needs.resize(len, false);
        self.producers.resize(len, usize::MAX);
    }

    /// Whether a node depends on a trainable parameter.
    fn depends_on_parameter(&self, node: &Node) -> bool {
        let matrix = node.op.matrix().and_then(|matrix| matrix.trained());
        node.inputs.iter().any(|t| self.needs[t.index()])
            || matrix.is_some_and(|trained| self.matrices.contains_key(&Arc::as_ptr(&trained.state)))
    }
}

impl Backward<'_> {
    /// The graph, to record into.
    pub fn graph(&mut self) -> &mut Graph {
        self.graph
    }

    /// The node's input at `index`.
    pub fn input(&self, index: usize) -> Tensor {
        self.node.inputs[index]
    }

    /// The node's output at `index`.
    pub fn output(&self, index: usize) -> Tensor {
        self.node.outputs[index]
    }

    /// Number of inputs.
    pub fn input_count(&self) -> usize {
        self.node.inputs.len()
    }

    /// Whether a tensor depends on a trainable parameter, and therefore needs a gradient.
    pub fn requires_grad(&self, tensor: Tensor) -> bool {
        self.walk.needs[tensor.index()]
    }

    /// For a trained matrix: the tensor to which its gradient is added, and the row of that tensor where this matrix
    /// begins. `None` for a frozen matrix.
    pub fn matrix_gradient(&self, matrix: &Matrix) -> Option<(Tensor, usize)> {
        let trained = matrix.trained()?;
        let gradient = self.walk.matrices.get(&Arc::as_ptr(&trained.state))?;
        Some((*gradient, trained.first_row))
    }

    /// The gradient of the output at `index`, if the loss depends on that output.
    pub fn gradient(&self, index: usize) -> Option<Tensor> {
        self.walk.gradients.get(&self.node.outputs[index]).copied()
    }

    /// Removes and returns the gradient of the output at `index`, for a state that other nodes write too.
    pub fn take_gradient(&mut self, index: usize) -> Option<Tensor> {
        self.walk.gradients.remove(&self.node.outputs[index])
    }

    /// Adds a contribution to the gradient of `tensor`. `write(graph, into, add)` records operations that write the
    /// contribution to `into`, or with `add` add it to the values that `into` already holds.
    pub fn contribute(&mut self, tensor: Tensor, write: impl FnOnce(&mut Graph, Tensor, bool)) {
        let known = self.walk.gradients.get(&tensor).copied();
        if let Some(gradient) = known.filter(|&g| self.may_change(tensor, g)) {
            write(self.graph, gradient, true);
            return;
        }
        let shape = self.graph.shape(tensor).to_vec();
        let fresh = self.graph.tensor(&shape, Dtype::F32);
        write(self.graph, fresh, false);
        let gradient = known.map_or(fresh, |known| self.graph.add(known, fresh));
        self.walk.gradients.insert(tensor, gradient);
    }

    /// Uses an existing tensor as a contribution to the gradient of `tensor`; nothing is copied if it is the first one.
    pub fn pass(&mut self, gradient: Tensor, tensor: Tensor) {
        let total = match self.walk.gradients.get(&tensor).copied() {
            Some(known) if self.walk.persistent.contains(&known) => {
                self.graph.accumulate(gradient, known);
                known
            }
            Some(known) => self.graph.add(known, gradient),
            None => gradient,
        };
        self.walk.gradients.insert(tensor, total);
    }

    /// Whether a gradient may be updated in place: it is not a state of other owners, and it is not shared with a
    /// tensor that has yet to be differentiated.
    fn may_change(&self, tensor: Tensor, gradient: Tensor) -> bool {
        let waiting = |other: Tensor| self.walk.producers[other.index()] <= self.index;
        let ours = self.graph.info(gradient).state.is_none();
        self.walk.persistent.contains(&gradient)
            || ours
                && !self.walk.gradients.iter().any(|(&other, &g)| other != tensor && g == gradient && waiting(other))
    }
}

impl Graph {
    /// Records the gradients of everything recorded so far. `seeds` are pairs (tensor, its gradient), whose gradients
    /// are already recorded; `parameters` are pairs (parameter, the state to which its gradient is added). States that
    /// are not parameters get no gradient.
    ///
    /// # Errors
    /// An operation without a gradient.
    pub fn backward(
        &mut self,
        seeds: &[(Tensor, Tensor)],
        parameters: &[(Arc<State>, Arc<State>)],
        options: BackwardOptions,
    ) -> Result<(), BackwardError> {
        let forward = self.nodes().to_vec();
        let mut walk = Walk { gradients: seeds.iter().copied().collect(), ..Walk::default() };
        let pairs: Vec<(Tensor, Tensor)> = parameters.iter().map(|(p, g)| (self.state(p), self.state(g))).collect();
        walk.resize(self.tensors().len());
        for (&(parameter, gradient), (state, _)) in pairs.iter().zip(parameters) {
            walk.matrices.insert(Arc::as_ptr(state), gradient);
            walk.needs[parameter.index()] = true;
            walk.gradients.insert(parameter, gradient);
            walk.persistent.push(gradient);
        }
        for (index, node) in forward.iter().enumerate() {
            let needs = walk.depends_on_parameter(node);
            for output in &node.outputs {
                walk.needs[output.index()] |= needs;
                let producer = &mut walk.producers[output.index()];
                *producer = (*producer).min(index);
            }
        }
        let end = forward
            .iter()
            .rposition(|node| seeds.iter().any(|(seed, _)| node.outputs.contains(seed)))
            .map_or(0, |last| last + 1);
        let segments =
            if options.recompute { self.segments(&forward[..end]) } else { std::iter::once(0..end).collect() };
        for (number, segment) in segments.iter().enumerate().rev() {
            let again = number + 1 < segments.len();
            let nodes = if again {
                self.record_again(&forward, segment.clone(), &mut walk)
            } else {
                forward[segment.clone()].to_vec()
            };
            for (index, node) in segment.clone().zip(nodes).rev() {
                self.node_backward(index, node, &mut walk)?;
            }
        }
        Ok(())
    }

    fn node_backward(&mut self, index: usize, node: Node, walk: &mut Walk) -> Result<(), BackwardError> {
        walk.resize(self.tensors().len());
        let reached = node.outputs.iter().any(|output| walk.gradients.contains_key(output));
        if !reached || !walk.depends_on_parameter(&node) {
            return Ok(());
        }
        let op = node.op.clone();
        op.backward(&mut Backward { graph: self, node, index, walk })
    }

    /// Splits a list after every node at whose end a single intermediate tensor is alive, besides those that all layers
    /// read (Gemma 4's embeddings for every layer).
    fn segments(&self, nodes: &[Node]) -> Vec<Range<usize>> {
        let mut last = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            last.extend(node.inputs.iter().chain(&node.outputs).map(|&t| (t, index)));
        }
        let mut alive: Vec<Tensor> = Vec::new();
        let mut counts = Vec::with_capacity(nodes.len());
        for (index, node) in nodes.iter().enumerate() {
            for &output in &node.outputs {
                if self.info(output).state.is_none() && !alive.contains(&output) {
                    alive.push(output);
                }
            }
            alive.retain(|t| last[t] > index);
            counts.push(alive.len());
        }
        let middle = &counts[nodes.len() / 4..nodes.len() - nodes.len() / 4];
        let fewest = middle.iter().copied().min().unwrap_or(1).max(1);
        let cuts: Vec<usize> =
            (0..counts.len()).filter(|&index| counts[index] == fewest).map(|index| index + 1).collect();
        // A pre-norm layer has two such points, after attention and after the MLP, and the embedding has one: every
        // second point is the end of a layer.
        let mut ends: Vec<usize> = every_second(&cuts).into_iter().filter(|&end| end < nodes.len()).collect();
        ends.push(nodes.len());
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(ends.iter().copied()).map(|(start, end)| start..end).collect()
    }

    /// Records the nodes of a segment again with new tensors, to which the known gradients of the old ones are moved.
    fn record_again(&mut self, forward: &[Node], segment: Range<usize>, walk: &mut Walk) -> Vec<Node> {
        let mut fresh: HashMap<Tensor, Tensor> = HashMap::new();
        let mut nodes = Vec::with_capacity(segment.len());
        for node in &forward[segment] {
            for &output in &node.outputs {
                if self.info(output).state.is_some() || fresh.contains_key(&output) {
                    continue;
                }
                let (shape, dtype) = (self.shape(output).to_vec(), self.info(output).dtype);
                let tensor = self.tensor(&shape, dtype);
                walk.resize(self.tensors().len());
                walk.needs[tensor.index()] = walk.needs[output.index()];
                walk.producers[tensor.index()] = walk.producers[output.index()];
                if let Some(gradient) = walk.gradients.remove(&output) {
                    walk.gradients.insert(tensor, gradient);
                }
                fresh.insert(output, tensor);
            }
            let renamed = |tensors: &[Tensor]| tensors.iter().map(|t| fresh.get(t).copied().unwrap_or(*t)).collect();
            let node = Node { op: node.op.clone(), inputs: renamed(&node.inputs), outputs: renamed(&node.outputs) };
            self.push_node(node.clone());
            nodes.push(node);
        }
        nodes
    }
}

/// Merges adjacent cuts, which the nodes of an element-wise chain (norm, then add) produce, into the last of them, and
/// keeps every second of the remaining cuts.
fn every_second(cuts: &[usize]) -> Vec<usize> {
    let mut groups: Vec<usize> = Vec::new();
    for &cut in cuts {
        match groups.last_mut() {
            Some(last) if cut <= *last + 1 => *last = cut,
            _ => groups.push(cut),
        }
    }
    groups.into_iter().step_by(2).collect()
}
