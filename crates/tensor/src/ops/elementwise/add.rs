//! y = a + b.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::cpu::CpuStep;
use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// Element-wise sum of two tensors of the same sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Add;

impl Graph {
    /// a + b
    pub fn add(&mut self, a: Tensor, b: Tensor) -> Tensor {
        assert_eq!(self.shape(a), self.shape(b), "add: sizes");
        let shape = self.shape(a).to_vec();
        self.apply(Add, &[a, b], &shape)
    }
}

impl Op for Add {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "add"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let len: usize = to.output_shape(0).iter().product();
        let threads = grid::row_threads(to, 64);
        let (defines, count) = grid::vectors(Defines::new().set("THREADS", threads), len);
        let (grid, stride) = grid::flat_grid(to, count, threads);
        let size = to.numbers(&[count as u32, stride])?;
        let bindings = vec![to.input(0), to.input(1), to.output(0), size];
        to.emit(
            KernelText { name: "add", parts: &[wgsl!("elementwise/add.wgsl")], defines, turns: 0 },
            &[bindings],
            grid,
        )
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        for input in [to.input(0), to.input(1)] {
            if let (Some(gradient), true) = (to.gradient(0), to.requires_grad(input)) {
                to.pass(gradient, input);
            }
        }
        Ok(())
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        let (a, b) = (step.inputs[0].f32(), step.inputs[1].f32());
        step.cpu.values(step.outputs[0].f32_mut(), |range, y| {
            let (a, b) = (&a[range.clone()], &b[range]);
            y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = a + b);
        });
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let (a, b) = (inputs[0].f32(), inputs[1].f32());
        outputs[0].f32_mut().iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = a + b);
    }
}
