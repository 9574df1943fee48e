//! The gate of a gated MLP: SwiGLU and GeGLU (Shazeer, 2020).

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::cpu::simd::by_level;
use crate::cpu::{CpuStep, Shared, exp};
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
    /// 1 / (1 + e⁻ᵛ)
    Sigmoid,
}

impl Activation {
    /// The name in the shaders.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Relu2 => "relu2",
            Activation::Sigmoid => "sigmoid",
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
            Activation::Sigmoid => 1.0 / (1.0 + (-v).exp()),
        }
    }
}

impl Activation {
    /// The function in f32, in a form of which compilers make vector instructions.
    #[inline(always)]
    pub(crate) fn fast(self, v: f32) -> f32 {
        match self {
            Activation::Silu => v / (1.0 + exp(-v)),
            // (1 + tanh(u)) / 2 is the sigmoid of 2 u.
            Activation::GeluTanh => v / (1.0 + exp(-1.595_769_2 * (v + 0.044_715 * v * v * v))),
            Activation::Relu2 => {
                if v > 0.0 {
                    v * v
                } else {
                    0.0
                }
            }
            Activation::Sigmoid => 1.0 / (1.0 + exp(-v)),
        }
    }
}

by_level! {
    /// The gate on the CPU.
    fn gated<S>(activation: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
        let values = y.iter_mut().zip(gate.iter().zip(up));
        match activation {
            Activation::Silu => values.for_each(|(y, (g, u))| *y = Activation::Silu.fast(*g) * u),
            Activation::GeluTanh => values.for_each(|(y, (g, u))| *y = Activation::GeluTanh.fast(*g) * u),
            Activation::Relu2 => values.for_each(|(y, (g, u))| *y = Activation::Relu2.fast(*g) * u),
            Activation::Sigmoid => values.for_each(|(y, (g, u))| *y = Activation::Sigmoid.fast(*g) * u),
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

    fn compute(&self, step: &mut CpuStep<'_>) {
        let (x, width) = (step.inputs[0].f32(), step.inputs[0].width() / 2);
        let (level, activation) = (step.cpu.level(), self.activation);
        // The work of a value is that of several elsewhere.
        let least = (1 << 11) / width.max(1);
        let (rows, to) = (x.len() / (2 * width), Shared::new(step.outputs[0].f32_mut()));
        if rows == 1 {
            let (gate, up) = x.split_at(width);
            step.cpu.split(width, 1 << 10, |range| {
                // SAFETY: each value is in one range.
                let y = unsafe { to.part(range.clone()) };
                gated(level, activation, &gate[range.clone()], &up[range], y);
            });
            return;
        }
        step.cpu.split(rows, least, |range| {
            for row in range {
                let (gate, up) = x[2 * row * width..][..2 * width].split_at(width);
                // SAFETY: each row is in one range.
                gated(level, activation, gate, up, unsafe { to.part(row * width..(row + 1) * width) });
            }
        });
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
