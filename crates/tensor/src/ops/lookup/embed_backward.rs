//! The gradient of [`super::Embed`]'s table: the gradients of equal tokens are summed and added to the token's row.
//!
//! The workgroup of a token's first occurrence sums all occurrences in order, so that no two workgroups add to one row
//! and results repeat bit by bit. Rejected: sorting the tokens first, because searching through them costs orders of
//! magnitude less than the layers.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::plan::{Extent, KernelText, Lowering, grid};

/// gradient[tokens\[t\]] += scale · dy\[t\]; inputs dy [T, D], tokens \[T\] and the gradient of a trained matrix [V,
/// D], which is also the output.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedBackward {
    /// The factor by which every embedding was multiplied.
    pub scale: f32,
}

impl Graph {
    /// Records gradient\[tokens\] += scale · dy.
    pub fn embed_backward(&mut self, dy: Tensor, tokens: Tensor, gradient: Tensor, scale: f32) {
        self.record(EmbedBackward { scale }, &[dy, tokens, gradient], &[gradient]);
    }
}

impl Op for EmbedBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "embed_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let (tokens, width) = (to.input_shape(0)[0], to.input_shape(0)[1]);
        let threads = grid::row_threads(to, width.min(64));
        let defines = Defines::new()
            .set("THREADS", threads)
            .set("D", width)
            .set("QUADS", width.div_ceil(32) * 8)
            .set("SCALE", self.scale);
        let count = to.numbers(&[tokens as u32])?;
        let bindings = vec![to.input(0), to.input(1), to.output(0), count];
        let parts = [wgsl!("lookup/embed_backward.wgsl")];
        // Columns per workgroup: all of them, except on a device that ends loops early.
        let each = 2 + tokens as u64;
        let piece = to.piece(2 * each, each, threads).min(width);
        let turns = (1 + grid::walk(piece, threads)) * each;
        let mut extents = grid::rows_grid(tokens);
        extents[1] = Extent::Fixed(width.div_ceil(piece) as u32);
        let defines = defines.set("PIECE", piece);
        to.emit(KernelText { name: "embed_backward", parts: &parts, defines, turns }, &[bindings], extents)
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = inputs[0].width();
        let padded = width.next_multiple_of(32);
        let gradient = outputs[0].f32_mut();
        for (dy, &token) in inputs[0].rows().zip(inputs[1].u32()) {
            let row = token as usize;
            for (k, &g) in dy.iter().enumerate() {
                gradient[row / 32 * 32 * padded + k / 4 * 128 + row % 32 * 4 + k % 4] += self.scale * g;
            }
        }
    }
}
