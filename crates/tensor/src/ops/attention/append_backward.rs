//! The gradient of [`crate::ops::Append`]: each cache row's gradient goes to the token that wrote the row.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values};
use crate::plan::{KernelText, Lowering, grid};

/// dk\[t\] = dcache[bases\[t\] + positions\[t\]], and dv the same; inputs dk_cache, dv_cache [rows, K d], positions
/// \[T\], bases \[T\].
#[derive(Debug, Clone, PartialEq)]
pub struct AppendBackward;

impl Graph {
    /// Given the gradients of the cache, the gradients [T, K, d] of the new keys and values.
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

impl Op for AppendBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "append_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let shape = to.output_shape(0);
        let width = shape[1] * shape[2];
        let threads = grid::row_threads(to, width.div_ceil(4));
        let (defines, vectors) = grid::vectors(Defines::new().set("THREADS", threads), width);
        let parts = [wgsl!("attention/append_backward.wgsl")];
        let bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.output(0), to.output(1)];
        let text = KernelText {
            name: "append_backward",
            parts: &parts,
            defines: defines.set("WIDTH", vectors),
            turns: grid::walk(vectors, threads),
        };
        to.emit(text, &[bindings], grid::rows_grid(shape[0]))
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
