//! The gradient of [`super::LayerNorm`]'s input.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::plan::{KernelText, Lowering, grid};

/// dx = s (g − mean(g) − x̂ mean(g∘x̂)) with g = w∘dy, x̂ = s (x − mean(x)), s = 1 / sqrt(variance + eps), or added to
/// dx; inputs x [T, D], weight \[D\], dy [T, D] (and dx).
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNormBackward {
    /// Added to the variance.
    pub eps: f32,
    /// Add to dx instead of overwriting it.
    pub add: bool,
}

impl Graph {
    /// Records dx (+)= the gradient of x.
    pub fn layer_norm_backward(&mut self, x: Tensor, weight: Tensor, dy: Tensor, dx: Tensor, eps: f32, add: bool) {
        let inputs = [x, weight, dy, dx];
        self.record(LayerNormBackward { eps, add }, &inputs[..3 + usize::from(add)], &[dx]);
    }
}

impl Op for LayerNormBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "layer_norm_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let shape = to.input_shape(0);
        let width = shape[shape.len() - 1];
        let rows = shape[..shape.len() - 1].iter().product();
        let threads = grid::row_threads(to, width.div_ceil(4));
        let defines = Defines::new().set("EPS", self.eps).set("INVERSE_D", 1.0 / width as f32).set("ADD", self.add);
        let (defines, vectors) = grid::vectors(defines, width);
        let defines = grid::reduction(to, defines.set("WIDTH", vectors), threads);
        let parts = [wgsl!("lib/reduce.wgsl"), wgsl!("norm/layer_backward.wgsl")];
        let bindings = vec![to.input(0), to.input(1), to.input(2), to.output(0)];
        to.emit(
            KernelText {
                name: "layer_norm_backward",
                parts: &parts,
                defines,
                turns: 3 * grid::walk(vectors, threads) + 4 * grid::REDUCTION,
            },
            &[bindings],
            grid::rows_grid(rows),
        )
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let weight = inputs[1].f32();
        let d = weight.len() as f64;
        let rows = inputs[0].rows().zip(inputs[2].rows());
        for ((x, dy), dx) in rows.zip(outputs[0].f32_mut().chunks_exact_mut(weight.len())) {
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / d;
            let scale =
                1.0 / (x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / d + f64::from(self.eps)).sqrt();
            let pull: Vec<f64> = dy.iter().zip(weight).map(|(&g, &w)| f64::from(g) * f64::from(w)).collect();
            let plain = pull.iter().sum::<f64>() / d;
            let along = x.iter().zip(&pull).map(|(&x, g)| (f64::from(x) - mean) * scale * g).sum::<f64>() / d;
            for (i, dx) in dx.iter_mut().enumerate() {
                let before = if self.add { f64::from(*dx) } else { 0.0 };
                *dx = (before + scale * (pull[i] - plain - (f64::from(x[i]) - mean) * scale * along)) as f32;
            }
        }
    }
}
