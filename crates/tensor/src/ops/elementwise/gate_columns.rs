//! Some columns of one tensor times the activation of some columns of another: the gate of attention (Qwen 3.5), of a
//! recurrent layer's result, and of the embeddings of a layer (Gemma 4).
//!
//! Rejected: copies of the columns, because a gate is often a part of a wider projection.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::gated::Activation;
use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// Columns of a row in runs: column n is `first` + n / `run` · `step` + n mod `run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// The first column.
    pub first: usize,
    /// Number of consecutive columns.
    pub run: usize,
    /// Distance from the first column of a run to that of the next.
    pub step: usize,
}

impl Columns {
    /// Consecutive columns from `first` on.
    pub fn from(first: usize, count: usize) -> Columns {
        Columns { first, run: count, step: count }
    }

    pub(super) fn at(self, n: usize) -> usize {
        self.first + n / self.run * self.step + n % self.run
    }

    pub(super) fn name(self, defines: Defines, of: &str) -> Defines {
        defines
            .set(&format!("{of}_FIRST"), self.first)
            .set(&format!("{of}_RUN"), self.run)
            .set(&format!("{of}_STEP"), self.step)
    }
}

/// y[t, n] = x[t, X(n)] · activation(gate[t, G(n)]); inputs x [T, W] and gate [T, V], output y [T, N].
#[derive(Debug, Clone, PartialEq)]
pub struct GateColumns {
    /// Number of columns N.
    pub count: usize,
    /// Applied to the gates.
    pub activation: Activation,
    /// The columns of x.
    pub x: Columns,
    /// The columns of the gates.
    pub gate: Columns,
}

impl Graph {
    /// Columns of x [T, W] times activated columns of gate [T, V]; see [`GateColumns`].
    pub fn gate_columns(&mut self, op: GateColumns, x: Tensor, gate: Tensor) -> Tensor {
        let tokens = self.rows(x);
        assert_eq!(tokens, self.rows(gate), "gate_columns: rows");
        for (columns, tensor) in [(op.x, x), (op.gate, gate)] {
            assert!(columns.run > 0 && columns.step >= columns.run, "gate_columns: runs");
            assert!(columns.at(op.count - 1) < self.width(tensor), "gate_columns: width");
        }
        let shape = [tokens, op.count];
        self.apply(op, &[x, gate], &shape)
    }
}

impl Op for GateColumns {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "gate_columns"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let len: usize = to.output_shape(0).iter().product();
        let widths = [0, 1].map(|input| to.input_shape(input).last().copied().unwrap_or(1) as u32);
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, len, threads);
        let defines =
            Defines::new().set("THREADS", threads).set("N", self.count).set("ACTIVATION", self.activation.name());
        let defines = self.gate.name(self.x.name(defines, "X"), "GATE");
        let size = to.numbers(&[len as u32, stride, widths[0], widths[1]])?;
        let parts = [wgsl!("lib/activate.wgsl"), wgsl!("elementwise/gate_columns.wgsl")];
        let bindings = vec![to.input(0), to.input(1), to.output(0), size];
        to.emit(KernelText { name: "gate_columns", parts: &parts, defines, turns: 0 }, &[bindings], grid)
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let (x, gate) = (to.input(0), to.input(1));
        let Some(dy) = to.gradient(0) else { return Ok(()) };
        for (input, of_gate) in [(x, false), (gate, true)] {
            if to.requires_grad(input) {
                to.contribute(input, |graph, into, add| {
                    graph.gate_columns_backward(self.clone(), of_gate, [x, gate, dy], into, add)
                });
            }
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let rows = inputs[0].rows().zip(inputs[1].rows());
        for ((x, gate), y) in rows.zip(outputs[0].f32_mut().chunks_exact_mut(self.count)) {
            for (n, y) in y.iter_mut().enumerate() {
                let gate = self.activation.apply(f64::from(gate[self.gate.at(n)]));
                *y = (f64::from(x[self.x.at(n)]) * gate) as f32;
            }
        }
    }
}
