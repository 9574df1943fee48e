//! Statistics of the inputs of linear layers, with which a quantizer weights the errors of a matrix's columns.

use std::sync::Arc;

use crate::graph::{Graph, Matrix, State};
use crate::ops::Linear;

impl Graph {
    /// The same list, in which the squares of each linear layer's inputs are added to the state that `sums` returns for
    /// its matrix. Layers for which it returns none stay unchanged.
    pub fn with_input_squares(&self, sums: &dyn Fn(&Arc<Matrix>) -> Option<Arc<State>>) -> Graph {
        let mut graph = self.with_nodes(Vec::new());
        for node in self.nodes() {
            let linear = node.op.as_any().downcast_ref::<Linear>();
            if let Some(state) = linear.and_then(|linear| sums(&linear.weight)) {
                let sums = graph.state(&state);
                graph.column_squares(node.inputs[0], sums);
            }
            graph.push_node(node.clone());
        }
        graph
    }
}
