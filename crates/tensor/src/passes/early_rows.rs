//! Rows are selected early: where only the first tokens' logits are needed, what follows the last cache write is
//! computed for these tokens alone. A decoder selects rows once, after its last layer; most of that layer comes after
//! its keys and values are written.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::graph::{Dtype, Graph, Node, Op, Tensor};
use crate::ops::{
    Activate, Add, Affine, Attention, Causality, GateColumns, Gated, LayerNorm, Linear, RmsNorm, ScaleColumns,
    SelectRows, SoftCap,
};

/// Whether an op computes each row of its output from the same row of its inputs, and from states.
fn is_by_rows(op: &dyn Op) -> bool {
    let op = op.as_any();
    op.is::<Linear>()
        || op.is::<RmsNorm>()
        || op.is::<LayerNorm>()
        || op.is::<Add>()
        || op.is::<Gated>()
        || op.is::<GateColumns>()
        || op.is::<Activate>()
        || op.is::<SoftCap>()
        || op.is::<ScaleColumns>()
        || op.is::<Affine>()
}

/// What the rewrite knows of a graph.
struct Early<'a> {
    graph: &'a mut Graph,
    /// Number of tokens.
    tokens: usize,
    /// Numbers of the first tokens \[R\].
    rows: Tensor,
    /// The first tokens' positions \[R\], cache rows \[R\] and tiles [R, 2].
    over: Causality,
    /// Operations from this index on may be computed for the first tokens alone.
    from: usize,
    first: HashMap<Tensor, Tensor>,
    nodes: Vec<Node>,
}

impl Early<'_> {
    /// The first rows of a tensor; `None` where its sizes do not begin with the number of tokens.
    fn first_of(&mut self, tensor: Tensor) -> Option<Tensor> {
        if let Some(&known) = self.first.get(&tensor) {
            return Some(known);
        }
        let (count, shape) = (self.graph.shape(self.rows)[0], self.graph.shape(tensor).to_vec());
        if shape.first() != Some(&self.tokens) || self.graph.info(tensor).dtype != Dtype::F32 {
            return None;
        }
        let producer = self.graph.nodes().iter().rposition(|node| node.outputs.contains(&tensor));
        let node = producer.filter(|&index| index >= self.from).map(|index| self.graph.nodes()[index].clone());
        let (op, inputs): (Arc<dyn Op>, Vec<Tensor>) = match node {
            Some(Node { op, inputs, outputs }) if outputs.len() == 1 && op.as_any().is::<Attention>() => {
                let q = self.first_of(inputs[0])?;
                (op, vec![q, inputs[1], inputs[2], self.over.positions, self.over.bases, self.over.tiles])
            }
            Some(Node { op, inputs, outputs }) if outputs.len() == 1 && is_by_rows(op.as_ref()) => {
                let own = |&input: &Tensor| match self.graph.info(input).state {
                    Some(_) => Some(input),
                    None => self.first_of(input),
                };
                (op, inputs.iter().map(own).collect::<Option<_>>()?)
            }
            _ => (Arc::new(SelectRows), vec![tensor, self.rows]),
        };
        let sizes: Vec<usize> = [count].iter().chain(&shape[1..]).copied().collect();
        let output = self.graph.tensor(&sizes, Dtype::F32);
        self.nodes.push(Node { op, inputs, outputs: vec![output] });
        self.first.insert(tensor, output);
        Some(output)
    }
}

impl Graph {
    /// The same results, with everything between the last written state and the selection of `rows`, the numbers of the
    /// first R tokens, computed for these tokens alone. `over` has their positions, cache rows and tiles, one tile for
    /// each token. A graph where that is not possible stays as it is.
    pub fn with_early_rows(mut self, rows: Tensor, over: Causality) -> Graph {
        let selects = |node: &Node| node.op.as_any().is::<SelectRows>() && node.inputs[1] == rows;
        let Some(at) = self.nodes().iter().position(selects) else { return self };
        let (x, selected) = (self.nodes()[at].inputs[0], self.nodes()[at].outputs[0]);
        let writes = |node: &Node| node.outputs.iter().any(|&output| self.info(output).state.is_some());
        let from = self.nodes()[..at].iter().rposition(writes).map_or(0, |index| index + 1);
        let tokens = self.shape(x)[0];
        let mut early = Early { graph: &mut self, tokens, rows, over, from, first: HashMap::new(), nodes: Vec::new() };
        let Some(first) = early.first_of(x) else { return self };
        let added = early.nodes;
        let mut after = self.nodes()[at + 1..].to_vec();
        for input in after.iter_mut().flat_map(|node| &mut node.inputs).filter(|input| **input == selected) {
            *input = first;
        }
        // What only the rows that are not needed were computed for is left out.
        let mut used: HashSet<Tensor> = added.iter().chain(&after).flat_map(|node| node.inputs.clone()).collect();
        let mut between: Vec<Node> = Vec::new();
        for node in self.nodes()[from..at].iter().rev() {
            if node.outputs.iter().any(|output| used.contains(output)) {
                used.extend(&node.inputs);
                between.push(node.clone());
            }
        }
        let before = self.nodes()[..from].iter().cloned();
        let nodes = before.chain(between.into_iter().rev()).chain(added).chain(after).collect();
        self.with_nodes(nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{State, Values, interpret};

    #[test]
    fn only_the_first_rows_are_computed() {
        let state = |shape: &[usize], values| State::new(None, "test", shape, values).unwrap();
        let numbers = |count: usize| Values::F32((0..count).map(|i| (i * 7 % 11) as f32 - 5.0).collect());
        let mut graph = Graph::new();
        let x = graph.state(&state(&[6, 8], numbers(48)));
        let a = graph.softcap(x, 3.0);
        let sums = graph.state(&state(&[8], numbers(8)));
        graph.column_squares(a, sums);
        let b = graph.activate(a, crate::ops::Activation::Silu);
        let c = graph.add(a, b);
        let rows = graph.state(&state(&[2], Values::U32(vec![0, 1])));
        let d = graph.select_rows(c, rows);
        let e = graph.softcap(d, 2.0);
        let over = Causality { positions: rows, bases: rows, tiles: rows };
        let early = graph.clone().with_early_rows(rows, over);
        let sizes = |graph: &Graph| -> Vec<(&'static str, usize)> {
            graph.nodes().iter().map(|node| (node.op.name(), graph.shape(node.outputs[0])[0])).collect()
        };
        assert_eq!(sizes(&graph).iter().filter(|node| node.1 == 6).count(), 3);
        // The values before the written state are computed for all, and selected; the rest for two rows.
        let of_all: Vec<_> = sizes(&early).into_iter().filter(|node| node.1 == 6).collect();
        assert_eq!(of_all, [("softcap", 6)]);
        assert_eq!(interpret(&early)[e.index()], interpret(&graph)[e.index()]);
    }
}
