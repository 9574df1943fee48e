//! Statistics of the inputs of linear layers, for a quantizer that spends its precision where it counts.

use std::sync::Arc;

use crate::graph::{Graph, Matrix, State};
use crate::ops::Linear;

impl Graph {
    /// The same list with the squares of each linear layer's inputs added to the state that `sums` has for its matrix;
    /// those without one are left as they are.
    pub fn measured(&self, sums: &dyn Fn(&Arc<Matrix>) -> Option<Arc<State>>) -> Graph {
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
