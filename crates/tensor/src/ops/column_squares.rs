//! sums\[k\] += Σ_t x[t, k]²: how much each input of a matrix carries, for a quantizer that spends its precision where it counts.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::Linear;
use crate::graph::{Graph, Node, Tensor};
use crate::lower::{KernelText, Lowering};
use crate::matrix::Matrix;
use crate::op::{Op, Operand};
use crate::state::State;
use crate::values::Values;

/// Adds the squares of x's columns to the sums; inputs x [T, K] and sums \[K\], output sums.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSquares;

impl Graph {
    /// sums \[K\] += the squares of x [T, K], column by column.
    pub fn column_squares(&mut self, x: Tensor, sums: &Arc<State>) {
        let sums = self.state(sums);
        assert_eq!(self.width(x), self.width(sums), "column_squares: widths");
        self.record(ColumnSquares, &[x, sums], &[sums]);
    }

    /// The same list with the squares of each linear layer's inputs added to the state that `sums` has for its matrix; those without one
    /// are left as they are.
    pub fn measured(&self, sums: &dyn Fn(&Arc<Matrix>) -> Option<Arc<State>>) -> Graph {
        let mut graph = self.with_nodes(Vec::new());
        for node in self.nodes() {
            let linear = node.op.as_any().downcast_ref::<Linear>();
            if let Some(state) = linear.and_then(|linear| sums(&linear.weight)) {
                let tensor = graph.state(&state);
                graph.push_node(Node { op: Arc::new(ColumnSquares), inputs: vec![node.inputs[0], tensor], outputs: vec![tensor] });
            }
            graph.push_node(node.clone());
        }
        graph
    }
}

impl Op for ColumnSquares {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "column_squares"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let width: usize = to.output_shape(0).iter().product();
        let rows = to.input_shape(0).iter().product::<usize>() / width.max(1);
        let threads = super::row_threads(to, 64);
        let (grid, stride) = super::flat_grid(to, width, threads);
        let size = to.numbers(&[width as u32, stride, rows as u32])?;
        let defines = Defines::new().set("THREADS", threads);
        let bindings = vec![to.input(0), to.output(0), size];
        to.emit(KernelText { name: "column_squares", parts: &[include_str!("../../../../shaders/column_squares.wgsl")], defines }, &[bindings], grid)
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let sums = outputs[0].f32_mut();
        for (k, sum) in sums.iter_mut().enumerate() {
            let squares = inputs[0].rows().map(|row| f64::from(row[k]).powi(2));
            *sum = (f64::from(*sum) + squares.sum::<f64>()) as f32;
        }
    }
}
