//! y += x, in place: adds a contribution to a gradient that outlives the step.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::plan::{KernelText, Lowering, grid};

/// y += x; inputs x and y, output y.
#[derive(Debug, Clone, PartialEq)]
pub struct Accumulate;

impl Graph {
    /// y += x
    pub fn accumulate(&mut self, x: Tensor, y: Tensor) {
        assert_eq!(self.info(x).len(), self.info(y).len(), "accumulate: sizes");
        self.record(Accumulate, &[x, y], &[y]);
    }
}

impl Op for Accumulate {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let len: usize = to.output_shape(0).iter().product();
        let threads = grid::row_threads(to, 64);
        let (defines, count) = grid::vectors(Defines::new().set("THREADS", threads), len);
        let (grid, stride) = grid::flat_grid(to, count, threads);
        let size = to.numbers(&[count as u32, stride])?;
        let bindings = vec![to.input(0), to.output(0), size];
        to.emit(
            KernelText { name: "accumulate", parts: &[wgsl!("training/accumulate.wgsl")], defines, turns: 0 },
            &[bindings],
            grid,
        )
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        outputs[0].f32_mut().iter_mut().zip(inputs[0].f32()).for_each(|(y, x)| *y += x);
    }
}
