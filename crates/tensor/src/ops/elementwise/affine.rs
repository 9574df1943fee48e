//! Weights that a model transforms whenever it reads them, because they are trained as the checkpoint stores them: the
//! weights of Gemma's norms are stored minus one, and Cohere's last norm is multiplied by the logit scale. Frozen
//! weights are transformed once, when they are loaded.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::cpu::CpuStep;
use crate::graph::{Affine, Graph, Op, Operand, State, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::Lowering;

impl Graph {
    /// factor · x
    pub fn scale(&mut self, x: Tensor, factor: f32) -> Tensor {
        let shape = self.shape(x).to_vec();
        self.apply(Affine { factor, plus: 0.0 }, &[x], &shape)
    }

    /// A weight with its transformation applied, if it has one.
    pub(crate) fn weight(&mut self, weight: &Arc<State>) -> Tensor {
        let stored = self.state(weight);
        match weight.read_as() {
            Some(affine) => self.apply(affine, &[stored], weight.shape()),
            None => stored,
        }
    }
}

impl Op for Affine {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "affine"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        super::map::map(
            to,
            "affine",
            wgsl!("elementwise/affine.wgsl"),
            Defines::new().set("FACTOR", self.factor).set("PLUS", self.plus),
        )
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let x = to.input(0);
        if let (Some(dy), true) = (to.gradient(0), to.requires_grad(x)) {
            let shape = to.graph().shape(x).to_vec();
            let dx =
                if self.factor == 1.0 { dy } else { to.graph().apply(Affine { plus: 0.0, ..*self }, &[dy], &shape) };
            to.pass(dx, x);
        }
        Ok(())
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        let x = step.inputs[0].f32();
        step.cpu.values(step.outputs[0].f32_mut(), |range, y| {
            y.iter_mut().zip(&x[range]).for_each(|(y, x)| *y = self.factor * x + self.plus);
        });
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        outputs[0].f32_mut().iter_mut().zip(inputs[0].f32()).for_each(|(y, x)| *y = self.factor * x + self.plus);
    }
}
