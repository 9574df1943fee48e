//! Selects rows, so that only tokens whose logits are needed are multiplied by the vocabulary matrix.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::cpu::CpuStep;
use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// y\[r\] = x[rows\[r\]]; inputs x [T, D], or more sizes, and rows \[R\].
#[derive(Debug, Clone, PartialEq)]
pub struct SelectRows;

impl Graph {
    /// The rows of x [T, D] at the indices `rows` \[R\]; all rows if there are none.
    pub fn choose_rows(&mut self, x: Tensor, rows: Option<Tensor>) -> Tensor {
        rows.map_or(x, |rows| self.select_rows(x, rows))
    }

    /// The rows of x [T, D] at the indices `rows` \[R\].
    pub fn select_rows(&mut self, x: Tensor, rows: Tensor) -> Tensor {
        let shape = [self.shape(rows)[0], self.width(x)];
        self.apply(SelectRows, &[x, rows], &shape)
    }
}

impl Op for SelectRows {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "select_rows"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let (rows, width) = (to.output_shape(0)[0], to.output_shape(0)[1..].iter().product::<usize>());
        let threads = grid::row_threads(to, width.div_ceil(4));
        let (defines, vectors) = grid::vectors(Defines::new().set("THREADS", threads), width);
        let bindings = vec![to.input(0), to.input(1), to.output(0)];
        let text = KernelText {
            name: "select_rows",
            parts: &[wgsl!("lookup/select_rows.wgsl")],
            defines: defines.set("WIDTH", vectors),
            turns: grid::walk(vectors, threads),
        };
        to.emit(text, &[bindings], grid::rows_grid(rows))
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let (x, rows) = (to.input(0), to.input(1));
        if let (Some(dy), true) = (to.gradient(0), to.requires_grad(x)) {
            let tokens = to.graph().rows(x);
            let dx = to.graph().select_rows_backward(dy, rows, tokens);
            to.pass(dx, x);
        }
        Ok(())
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        self.reference(step.inputs, step.outputs);
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = inputs[0].values.len() / inputs[0].shape[0].max(1);
        for (&row, y) in inputs[1].u32().iter().zip(outputs[0].f32_mut().chunks_exact_mut(width)) {
            y.copy_from_slice(&inputs[0].f32()[row as usize * width..(row as usize + 1) * width]);
        }
    }
}
