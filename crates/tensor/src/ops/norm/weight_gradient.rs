//! The gradient of a norm's weight is the sum over tokens of these products: normalised values times gradients.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::plan::{KernelText, Lowering, grid};

/// z\[t\] = dy\[t\] ∘ (x\[t\] − m) / sqrt(mean((x\[t\] − m)²) + eps), with m the mean of x\[t\] or 0; inputs x and dy
/// [T, D], or rows of several runs of D, output z [T, D] with a row for each run.
#[derive(Debug, Clone, PartialEq)]
pub struct NormWeightGradient {
    /// Added to the mean square.
    pub eps: f32,
    /// Whether the mean is subtracted, as in layer normalisation.
    pub mean: bool,
    /// Length D of the weight.
    pub width: usize,
}

impl Graph {
    /// The products [T, D] for a weight of length D, `width`.
    pub fn norm_weight_gradient(&mut self, x: Tensor, dy: Tensor, width: usize, eps: f32, mean: bool) -> Tensor {
        let shape = [self.info(x).len() / width, width];
        self.apply(NormWeightGradient { eps, mean, width }, &[x, dy], &shape)
    }
}

impl Op for NormWeightGradient {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "norm_weight_gradient"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let width = self.width;
        let (grid, runs) = grid::runs_grid(to.input_shape(0), width);
        let threads = grid::row_threads(to, width.div_ceil(4));
        let defines = Defines::new().set("EPS", self.eps).set("INVERSE_D", 1.0 / width as f32).set("MEAN", self.mean);
        let (defines, vectors) = grid::vectors(defines, width);
        let defines = grid::reduction(to, defines.set("WIDTH", vectors).set("RUNS", runs), threads);
        let parts = [wgsl!("lib/reduce.wgsl"), wgsl!("norm/weight_gradient.wgsl")];
        let bindings = vec![to.input(0), to.input(1), to.output(0)];
        to.emit(
            KernelText {
                name: "norm_weight_gradient",
                parts: &parts,
                defines,
                turns: 3 * grid::walk(vectors, threads) + 4 * grid::REDUCTION,
            },
            &[bindings],
            grid,
        )
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = self.width;
        let rows = inputs[0].f32().chunks_exact(width).zip(inputs[1].f32().chunks_exact(width));
        for ((x, dy), z) in rows.zip(outputs[0].f32_mut().chunks_exact_mut(width)) {
            let d = x.len() as f64;
            let mean = if self.mean { x.iter().map(|&v| f64::from(v)).sum::<f64>() / d } else { 0.0 };
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / d;
            let scale = 1.0 / (variance + f64::from(self.eps)).sqrt();
            z.iter_mut()
                .zip(x.iter().zip(dy))
                .for_each(|(z, (&x, &g))| *z = ((f64::from(x) - mean) * scale * f64::from(g)) as f32);
        }
    }
}
