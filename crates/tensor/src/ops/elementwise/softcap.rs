//! Soft-capping of the final logits (Gemma 2): cap · tanh(x / cap). The kernels of attention cap its scores themselves.
//! The gradient of the final cap is part of the cross-entropy, the only op through which logits are differentiated.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::cpu::CpuStep;
use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::plan::Lowering;

/// y = cap · tanh(x / cap), element by element.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftCap {
    /// Upper bound of |y|.
    pub cap: f32,
}

impl Graph {
    /// cap · tanh(x / cap)
    pub fn softcap(&mut self, x: Tensor, cap: f32) -> Tensor {
        let shape = self.shape(x).to_vec();
        self.apply(SoftCap { cap }, &[x], &shape)
    }
}

impl Op for SoftCap {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "softcap"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        super::map::map(to, "softcap", wgsl!("elementwise/softcap.wgsl"), Defines::new().set("CAP", self.cap))
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        let x = step.inputs[0].f32();
        step.cpu.values(step.outputs[0].f32_mut(), |range, y| {
            y.iter_mut().zip(&x[range]).for_each(|(y, x)| *y = self.cap * (x / self.cap).tanh());
        });
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let cap = f64::from(self.cap);
        outputs[0]
            .f32_mut()
            .iter_mut()
            .zip(inputs[0].f32())
            .for_each(|(y, &x)| *y = (cap * (f64::from(x) / cap).tanh()) as f32);
    }
}
