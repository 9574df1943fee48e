//! The gate of a gated MLP: SwiGLU and GeGLU (Shazeer, 2020).

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// The function applied to the gate, by Hugging Face's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// v · sigmoid(v)
    Silu,
    /// The tanh approximation of GELU (`gelu_pytorch_tanh`).
    GeluTanh,
    /// max(v, 0)² (`relu2`)
    Relu2,
}

impl Activation {
    /// The name in the shaders.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Relu2 => "relu2",
        }
    }

    /// The function itself.
    pub fn apply(self, v: f64) -> f64 {
        match self {
            Activation::Silu => v / (1.0 + (-v).exp()),
            Activation::GeluTanh => {
                0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v)).tanh())
            }
            Activation::Relu2 => v.max(0.0).powi(2),
        }
    }
}

/// y[t, f] = activation(x[t, f]) · x[t, F + f]; the first half of a row of x [T, 2F] is the gate, the second half up.
#[derive(Debug, Clone, PartialEq)]
pub struct Gated {
    /// Applied to the gates.
    pub activation: Activation,
}

impl Graph {
    /// Halves the width of x [T, 2F].
    pub fn gated(&mut self, x: Tensor, activation: Activation) -> Tensor {
        let mut shape = self.shape(x).to_vec();
        if let Some(width) = shape.last_mut() {
            assert!(width.is_multiple_of(2), "gated: width {width} is odd");
            *width /= 2;
        }
        self.apply(Gated { activation }, &[x], &shape)
    }
}

impl Op for Gated {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "gated"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let shape = to.output_shape(0);
        let len: usize = shape.iter().product();
        let threads = grid::row_threads(to, 64);
        let (grid, stride) = grid::flat_grid(to, len, threads);
        let defines = Defines::new()
            .set("THREADS", threads)
            .set("F", shape[shape.len() - 1])
            .set("ACTIVATION", self.activation.name());
        let size = to.numbers(&[len as u32, stride])?;
        let parts = [wgsl!("lib/activate.wgsl"), wgsl!("elementwise/gated.wgsl")];
        let bindings = vec![to.input(0), to.output(0), size];
        to.emit(KernelText { name: "gated", parts: &parts, defines, turns: 0 }, &[bindings], grid)
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let x = to.input(0);
        if let (Some(dy), true) = (to.gradient(0), to.requires_grad(x)) {
            let dx = to.graph().gated_backward(x, dy, self.activation);
            to.pass(dx, x);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = inputs[0].width() / 2;
        for (x, y) in inputs[0].rows().zip(outputs[0].f32_mut().chunks_exact_mut(width)) {
            for f in 0..width {
                y[f] = (self.activation.apply(f64::from(x[f])) * f64::from(x[width + f])) as f32;
            }
        }
    }
}
