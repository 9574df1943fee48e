//! The gradient of [`crate::ops::SelectRows`]: each row's gradient is added to the row that was selected.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::plan::{Extent, KernelText, Lowering, grid};

/// dx\[t\] = Σ dy\[r\] over the r with rows\[r\] = t; inputs dy [R, D] and rows \[R\], output dx [T, D]. A row may have
/// been selected several times.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectRowsBackward;

impl Graph {
    /// The gradient [T, D] of the tensor from which rows were selected.
    pub fn select_rows_backward(&mut self, dy: Tensor, rows: Tensor, tokens: usize) -> Tensor {
        let shape = [tokens, self.width(dy)];
        self.apply(SelectRowsBackward, &[dy, rows], &shape)
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
        let threads = grid::row_threads(to, width.div_ceil(4));
        let (defines, vectors) = grid::vectors(Defines::new().set("THREADS", threads), width);
        let parts = [wgsl!("lookup/select_rows_backward.wgsl")];
        let count = to.numbers(&[rows as u32])?;
        let bindings = vec![to.input(0), to.input(1), to.output(0), count];
        // Columns per workgroup: all of them, except on a device that ends loops early.
        let each = 2 + rows as u64;
        let piece = to.piece(2 * each, each, threads).min(vectors);
        let turns = (1 + grid::walk(piece, threads)) * each;
        let mut extents = grid::rows_grid(tokens);
        extents[1] = Extent::Fixed(vectors.div_ceil(piece) as u32);
        let defines = defines.set("WIDTH", vectors).set("PIECE", piece);
        to.emit(KernelText { name: "select_rows_backward", parts: &parts, defines, turns }, &[bindings], extents)
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
