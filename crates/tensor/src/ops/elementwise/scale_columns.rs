//! Multiplies every row by the same vector: Falcon-H1's multipliers of the sections of a projection, or one number:
//! Gemma 4's factor of each layer.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::cpu::CpuStep;
use crate::graph::{Graph, Op, Operand, State, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// y[t, n] = x[t, n] · factors\[n\]; inputs x [T, N] and factors \[N\], or \[1\] for all columns. A single factor is a
/// constant of the checkpoint: training all parameters leaves it as it is, as in transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleColumns;

impl Graph {
    /// x [T, N] times factors \[N\], or times the only factor.
    pub fn scale_columns(&mut self, x: Tensor, factors: &Arc<State>) -> Tensor {
        let factors = self.state(factors);
        assert!([1, self.width(x)].contains(&self.width(factors)), "scale_columns: widths");
        let shape = self.shape(x).to_vec();
        self.apply(ScaleColumns, &[x, factors], &shape)
    }
}

impl Op for ScaleColumns {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "scale_columns"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let len: usize = to.output_shape(0).iter().product();
        let width: usize = to.input_shape(1).iter().product();
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, len, threads);
        let size = to.numbers(&[len as u32, stride, width as u32])?;
        let defines = Defines::new().set("THREADS", threads);
        let bindings = vec![to.input(0), to.input(1), to.output(0), size];
        to.emit(
            KernelText { name: "scale_columns", parts: &[wgsl!("elementwise/scale_columns.wgsl")], defines, turns: 0 },
            &[bindings],
            grid,
        )
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let (x, factors) = (to.input(0), to.input(1));
        if to.requires_grad(factors) && to.graph().width(factors) > 1 {
            return Err(BackwardError("scale_columns with trained factors"));
        }
        if let (Some(dy), true) = (to.gradient(0), to.requires_grad(x)) {
            let shape = to.graph().shape(x).to_vec();
            let dx = to.graph().apply(ScaleColumns, &[dy, factors], &shape);
            to.pass(dx, x);
        }
        Ok(())
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        let (x, factors) = (step.inputs[0].f32(), step.inputs[1].f32());
        let width = factors.len();
        step.cpu.rows(step.outputs[0].f32_mut(), width, |range, y| {
            for (x, y) in x[range.start * width..].chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                y.iter_mut().zip(x.iter().zip(factors)).for_each(|(y, (x, f))| *y = x * f);
            }
        });
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let factors = inputs[1].f32();
        let rows = inputs[0].f32().chunks_exact(factors.len());
        for (x, y) in rows.zip(outputs[0].f32_mut().chunks_exact_mut(factors.len())) {
            y.iter_mut().zip(x.iter().zip(factors)).for_each(|(y, (x, f))| *y = x * f);
        }
    }
}
