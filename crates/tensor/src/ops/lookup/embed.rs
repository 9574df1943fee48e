//! Looks tokens up in the embedding matrix, in any weight format.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::cpu::CpuStep;
use crate::format_shaders;
use crate::graph::{Graph, Matrix, Op, Operand, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// y\[t\] = scale · table[tokens\[t\]]; input tokens \[T\], table [V, D].
#[derive(Debug, Clone)]
pub struct Embed {
    /// The embedding matrix [V, D].
    pub table: Arc<Matrix>,
    /// Multiplies every embedding (Gemma: √D).
    pub scale: f32,
}

impl Graph {
    /// The embeddings [T, D] of tokens \[T\].
    pub fn embed(&mut self, tokens: Tensor, table: &Arc<Matrix>, scale: f32) -> Tensor {
        let shape = [self.shape(tokens)[0], table.columns()];
        self.apply(Embed { table: table.clone(), scale }, &[tokens], &shape)
    }
}

impl Op for Embed {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "embed"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let tokens = to.input_shape(0)[0];
        let threads = grid::row_threads(to, self.table.blocks());
        for shard in self.table.shards() {
            let defines = Defines::new()
                .set("THREADS", threads)
                .set("D", self.table.columns())
                .set("SCALE", self.scale)
                .set("RAGGED", !self.table.columns().is_multiple_of(32));
            let range = to.numbers(&[shard.first_row as u32, shard.rows as u32])?;
            let constants = format_shaders::constants(&self.table);
            let parts = [constants.as_str(), format_shaders::shader(self.table.format()), wgsl!("lookup/embed.wgsl")];
            let bindings = vec![to.input(0), to.output(0), range];
            to.emit(
                KernelText {
                    name: "embed",
                    parts: &parts,
                    defines,
                    // A block is written as 8 vectors, or value by value where the width is no multiple of 32.
                    turns: grid::walk(self.table.blocks(), threads) * (2 + 8 * 6),
                },
                &[bindings, shard.planes()],
                grid::rows_grid(tokens),
            )?;
        }
        Ok(())
    }

    fn matrix(&self) -> Option<&Arc<Matrix>> {
        Some(&self.table)
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        if let (Some(dy), Some((gradient, 0))) = (to.gradient(0), to.matrix_gradient(&self.table)) {
            let tokens = to.input(0);
            to.graph().embed_backward(dy, tokens, gradient, self.scale);
        }
        Ok(())
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        let (tokens, width) = (step.inputs[0].u32(), self.table.columns());
        step.cpu.rows(step.outputs[0].f32_mut(), width, |range, y| {
            let mut row = Vec::new();
            for (&token, y) in tokens[range].iter().zip(y.chunks_exact_mut(width)) {
                self.table.host_row(token as usize, &mut row);
                y.iter_mut().zip(&row).for_each(|(y, w)| *y = w * self.scale);
            }
        });
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let mut row = Vec::new();
        for (&token, y) in inputs[0].u32().iter().zip(outputs[0].f32_mut().chunks_exact_mut(self.table.columns())) {
            self.table.host_row(token as usize, &mut row);
            y.iter_mut().zip(&row).for_each(|(y, w)| *y = w * self.scale);
        }
    }
}
