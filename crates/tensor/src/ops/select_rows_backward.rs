//! The gradients of [`super::SelectRows`] and [`super::Append`]: rows go back to where they came from.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Dtype, Graph, Tensor};
use crate::lower::{KernelText, Lowering};
use crate::op::{Op, Operand};
use crate::values::Values;

/// dx\[t\] = Σ dy\[r\] over the r with rows\[r\] = t; inputs dy [R, D] and rows \[R\], output dx [T, D]. A row may have
/// been selected several times.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectRowsBackward;

/// dk\[t\] = dcache[bases\[t\] + positions\[t\]], and dv the same; inputs dk_cache, dv_cache [rows, K d], positions
/// \[T\], bases \[T\].
#[derive(Debug, Clone, PartialEq)]
pub struct AppendBackward;

impl Graph {
    /// The gradient [T, D] of the rows that were selected from.
    pub fn select_rows_backward(&mut self, dy: Tensor, rows: Tensor, tokens: usize) -> Tensor {
        let shape = [tokens, self.width(dy)];
        self.apply(SelectRowsBackward, &[dy, rows], &shape)
    }

    /// The gradients [T, K, d] of new keys and values from those of the cache.
    pub fn append_backward(
        &mut self,
        dk_cache: Tensor,
        dv_cache: Tensor,
        positions: Tensor,
        bases: Tensor,
        shape: &[usize],
    ) -> [Tensor; 2] {
        let outputs = [self.tensor(shape, Dtype::F32), self.tensor(shape, Dtype::F32)];
        self.record(AppendBackward, &[dk_cache, dv_cache, positions, bases], &outputs);
        outputs
    }
}

impl Op for SelectRowsBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "select_rows_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let (rows, width) = (to.input_shape(0)[0], to.input_shape(0)[1]);
        let tokens = to.output_shape(0)[0];
        let threads = super::row_threads(to, width.div_ceil(4));
        let (defines, vectors) = super::vectors(Defines::new().set("THREADS", threads), width);
        let parts = [include_str!("../../../../shaders/select_rows_backward.wgsl")];
        let count = to.numbers(&[rows as u32])?;
        let bindings = vec![to.input(0), to.input(1), to.output(0), count];
        let text = KernelText { name: "select_rows_backward", parts: &parts, defines: defines.set("WIDTH", vectors) };
        to.emit(text, &[bindings], super::rows_grid(tokens))
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = inputs[0].width();
        let dx = outputs[0].f32_mut();
        for (dy, &row) in inputs[0].rows().zip(inputs[1].u32()) {
            let to = &mut dx[row as usize * width..(row as usize + 1) * width];
            to.iter_mut().zip(dy).for_each(|(x, y)| *x += y);
        }
    }
}

impl Op for AppendBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "append_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let shape = to.output_shape(0);
        let width = shape[1] * shape[2];
        let threads = super::row_threads(to, width.div_ceil(4));
        let (defines, vectors) = super::vectors(Defines::new().set("THREADS", threads), width);
        let parts = [include_str!("../../../../shaders/append_backward.wgsl")];
        let bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.output(0), to.output(1)];
        let text = KernelText { name: "append_backward", parts: &parts, defines: defines.set("WIDTH", vectors) };
        to.emit(text, &[bindings], super::rows_grid(shape[0]))
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = inputs[0].width();
        for (input, output) in inputs[..2].iter().zip(outputs) {
            for (t, y) in output.f32_mut().chunks_exact_mut(width).enumerate() {
                let row = (inputs[2].u32()[t] + inputs[3].u32()[t]) as usize;
                y.copy_from_slice(&input.f32()[row * width..(row + 1) * width]);
            }
        }
    }
}
