//! The gradient of [`super::RmsNorm`]'s input.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Graph, Op, Operand, Tensor, Values};
use crate::plan::{KernelText, Lowering, grid};

/// dx = s w∘dy − x s³ mean(x∘w∘dy) with s = 1 / sqrt(mean(x²) + eps), or added to dx; inputs x [T, D], weight \[D\], dy
/// [T, D] (and dx).
#[derive(Debug, Clone, PartialEq)]
pub struct RmsNormBackward {
    /// Added to the mean square.
    pub eps: f32,
    /// Add to dx instead of overwriting it.
    pub add: bool,
}

impl Graph {
    /// Records dx (+)= the gradient of x.
    pub fn rms_norm_backward(&mut self, x: Tensor, weight: Tensor, dy: Tensor, dx: Tensor, eps: f32, add: bool) {
        let inputs = [x, weight, dy, dx];
        self.record(RmsNormBackward { eps, add }, &inputs[..3 + usize::from(add)], &[dx]);
    }
}

impl Op for RmsNormBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "rms_norm_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let width: usize = to.input_shape(1).iter().product();
        let (grid, runs) = grid::runs_grid(to.input_shape(0), width);
        let threads = grid::row_threads(to, width.div_ceil(4));
        let defines = Defines::new().set("EPS", self.eps).set("INVERSE_D", 1.0 / width as f32).set("ADD", self.add);
        let (defines, vectors) = grid::vectors(defines, width);
        let defines = grid::reduction(to, defines.set("WIDTH", vectors).set("RUNS", runs), threads);
        let parts = [wgsl!("lib/reduce.wgsl"), wgsl!("norm/rms_backward.wgsl")];
        let bindings = vec![to.input(0), to.input(1), to.input(2), to.output(0)];
        to.emit(
            KernelText {
                name: "rms_norm_backward",
                parts: &parts,
                defines,
                turns: 2 * grid::walk(vectors, threads) + 2 * grid::REDUCTION,
            },
            &[bindings],
            grid,
        )
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let weight = inputs[1].f32();
        let rows = inputs[0].f32().chunks_exact(weight.len()).zip(inputs[2].f32().chunks_exact(weight.len()));
        for ((x, dy), dx) in rows.zip(outputs[0].f32_mut().chunks_exact_mut(weight.len())) {
            let d = x.len() as f64;
            let scale = 1.0 / (x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / d + f64::from(self.eps)).sqrt();
            let pull: Vec<f64> = dy.iter().zip(weight).map(|(&g, &w)| f64::from(g) * f64::from(w)).collect();
            let along = x.iter().zip(&pull).map(|(&x, g)| f64::from(x) * g).sum::<f64>() / d * scale.powi(3);
            for (i, dx) in dx.iter_mut().enumerate() {
                let before = if self.add { f64::from(*dx) } else { 0.0 };
                *dx = (before + scale * pull[i] - f64::from(x[i]) * along) as f32;
            }
        }
    }
}
