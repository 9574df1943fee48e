//! The gradient of [`super::Gated`]; the activation is recomputed.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::gated::Activation;
use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::plan::{KernelText, Lowering, grid};

impl Activation {
    /// The derivative.
    pub fn slope(self, v: f64) -> f64 {
        match self {
            Activation::Silu => {
                let s = 1.0 / (1.0 + (-v).exp());
                s * (1.0 + v * (1.0 - s))
            }
            Activation::GeluTanh => {
                let c = (2.0 / std::f64::consts::PI).sqrt();
                let t = (c * (v + 0.044715 * v * v * v)).tanh();
                0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * v * v)
            }
            Activation::Relu2 => 2.0 * v.max(0.0),
            Activation::Sigmoid => {
                let s = 1.0 / (1.0 + (-v).exp());
                s * (1.0 - s)
            }
        }
    }
}

/// From x [T, 2F] (gate, then up) and dy [T, F] to dx [T, 2F].
#[derive(Debug, Clone, PartialEq)]
pub struct GatedBackward {
    /// Applied to the gates.
    pub activation: Activation,
}

impl Graph {
    /// The gradient [T, 2F] of the input of `gated`.
    pub fn gated_backward(&mut self, x: Tensor, dy: Tensor, activation: Activation) -> Tensor {
        let shape = self.shape(x).to_vec();
        self.apply(GatedBackward { activation }, &[x, dy], &shape)
    }
}

impl Op for GatedBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "gated_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let shape = to.input_shape(1);
        let len: usize = shape.iter().product();
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, len, threads);
        let defines = Defines::new()
            .set("THREADS", threads)
            .set("F", shape[shape.len() - 1])
            .set("ACTIVATION", self.activation.name());
        let size = to.numbers(&[len as u32, stride])?;
        let parts =
            [wgsl!("lib/activate.wgsl"), wgsl!("lib/activate_slope.wgsl"), wgsl!("elementwise/gated_backward.wgsl")];
        let bindings = vec![to.input(0), to.input(1), to.output(0), size];
        to.emit(KernelText { name: "gated_backward", parts: &parts, defines, turns: 0 }, &[bindings], grid)
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = inputs[1].width();
        for ((x, dy), dx) in
            inputs[0].rows().zip(inputs[1].rows()).zip(outputs[0].f32_mut().chunks_exact_mut(2 * width))
        {
            for f in 0..width {
                let (gate, up, gradient) = (f64::from(x[f]), f64::from(x[width + f]), f64::from(dy[f]));
                dx[f] = (gradient * up * self.activation.slope(gate)) as f32;
                dx[width + f] = (gradient * self.activation.apply(gate)) as f32;
            }
        }
    }
}
