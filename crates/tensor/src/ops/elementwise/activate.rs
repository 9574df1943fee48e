//! An activation alone, for MLPs without a gate.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::gated::Activation;
use crate::cpu::CpuStep;
use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// y = activation(x), element by element; with `slope` dx = dy · activation′(x), inputs x and dy.
#[derive(Debug, Clone, PartialEq)]
pub struct Activate {
    /// The function.
    pub activation: Activation,
    /// Compute the derivative times a second input, instead of the function.
    pub slope: bool,
}

impl Graph {
    /// activation(x)
    pub fn activate(&mut self, x: Tensor, activation: Activation) -> Tensor {
        let shape = self.shape(x).to_vec();
        self.apply(Activate { activation, slope: false }, &[x], &shape)
    }
}

impl Op for Activate {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        if self.slope { "activate_backward" } else { "activate" }
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let len: usize = to.output_shape(0).iter().product();
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, len, threads);
        let defines =
            Defines::new().set("THREADS", threads).set("ACTIVATION", self.activation.name()).set("SLOPE", self.slope);
        let size = to.numbers(&[len as u32, stride])?;
        let parts = [wgsl!("lib/activate.wgsl"), wgsl!("lib/activate_slope.wgsl"), wgsl!("elementwise/activate.wgsl")];
        let mut bindings = vec![to.input(0), to.output(0), size];
        bindings.extend(self.slope.then(|| to.input(1)));
        to.emit(KernelText { name: self.name(), parts: &parts, defines, turns: 0 }, &[bindings], grid)
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        if self.slope {
            return Err(BackwardError("activate_backward"));
        }
        let x = to.input(0);
        if let (Some(dy), true) = (to.gradient(0), to.requires_grad(x)) {
            let shape = to.graph().shape(x).to_vec();
            let dx = to.graph().apply(Activate { slope: true, ..self.clone() }, &[x, dy], &shape);
            to.pass(dx, x);
        }
        Ok(())
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        if self.slope {
            return step.by_reference(&|inputs, outputs| self.reference(inputs, outputs));
        }
        let x = step.inputs[0].f32();
        step.cpu.values(step.outputs[0].f32_mut(), |range, y| {
            y.iter_mut().zip(&x[range]).for_each(|(y, &x)| *y = self.activation.fast(x));
        });
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let y = outputs[0].f32_mut();
        for (i, (y, &x)) in y.iter_mut().zip(inputs[0].f32()).enumerate() {
            let x = f64::from(x);
            *y = if self.slope {
                (self.activation.slope(x) * f64::from(inputs[1].f32()[i])) as f32
            } else {
                self.activation.apply(x) as f32
            };
        }
    }
}
