//! Root-mean-square normalisation (Zhang and Sennrich, 2019).

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::cpu::simd::by_level;
use crate::cpu::{CpuStep, lane_sum};
use crate::graph::{Graph, Op, Operand, State, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// y\[t\] = x\[t\] / sqrt(mean(x\[t\]²) + eps) · weight; inputs x [T, D] and weight \[D\], and if enabled the
/// residual [T, D]. A row of x may also hold several runs as long as the weight, each normalised by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// Whether a residual is added last, as after the norms that follow a sub-layer.
    pub residual: bool,
}

impl Graph {
    /// Normalises the rows of x [T, D], or each run of a row that is as long as the weight.
    pub fn rms_norm(&mut self, x: Tensor, weight: &Arc<State>, eps: f32) -> Tensor {
        let weight = self.weight(weight);
        assert!(self.width(x).is_multiple_of(self.width(weight)), "rms_norm: width of x and weight");
        let shape = self.shape(x).to_vec();
        self.apply(RmsNorm { eps, residual: false }, &[x, weight], &shape)
    }
}

impl Op for RmsNorm {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let width: usize = to.input_shape(1).iter().product();
        let (grid, runs) = grid::runs_grid(to.input_shape(0), width);
        let threads = grid::row_threads(to, width.div_ceil(4));
        let (defines, vectors) =
            grid::vectors(Defines::new().set("EPS", self.eps).set("INVERSE_D", 1.0 / width as f32), width);
        let defines = grid::reduction(to, defines.set("WIDTH", vectors).set("RUNS", runs), threads);
        let parts = [wgsl!("lib/reduce.wgsl"), wgsl!("norm/rms.wgsl")];
        let mut bindings = vec![to.input(0), to.input(1), to.output(0)];
        bindings.extend(self.residual.then(|| to.input(2)));
        let name = if self.residual { "rms_norm add" } else { "rms_norm" };
        to.emit(
            KernelText {
                name,
                parts: &parts,
                defines: defines.set("RESIDUAL", self.residual),
                turns: 2 * grid::walk(vectors, threads) + grid::REDUCTION,
            },
            &[bindings],
            grid,
        )
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let (x, weight, eps) = (to.input(0), to.input(1), self.eps);
        if self.residual {
            return Err(BackwardError("rms_norm joined with a sum by a rewrite"));
        }
        if let (Some(dy), true) = (to.gradient(0), to.requires_grad(weight)) {
            let width = to.graph().width(weight);
            let parts = to.graph().norm_weight_gradient(x, dy, width, eps, false);
            to.contribute(weight, |graph, dw, add| graph.column_sum(parts, dw, add));
        }
        if let (Some(dy), true) = (to.gradient(0), to.requires_grad(x)) {
            to.contribute(x, |graph, dx, add| graph.rms_norm_backward(x, weight, dy, dx, eps, add));
        }
        Ok(())
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        let (x, weight) = (step.inputs[0].f32(), step.inputs[1].f32());
        let residual = self.residual.then(|| step.inputs[2].f32());
        let (width, level) = (weight.len(), step.cpu.level());
        step.cpu.rows(step.outputs[0].f32_mut(), width, |range, y| {
            let part = range.start * width..range.end * width;
            normalise(level, &x[part.clone()], weight, residual.map(|r| &r[part]), self.eps, y);
        });
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let weight = inputs[1].f32();
        let rows = inputs[0].f32().chunks_exact(weight.len());
        for (x, y) in rows.zip(outputs[0].f32_mut().chunks_exact_mut(weight.len())) {
            let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
            let scale = 1.0 / (mean + f64::from(self.eps)).sqrt();
            y.iter_mut()
                .zip(x.iter().zip(weight))
                .for_each(|(y, (&x, &w))| *y = (f64::from(x) * scale * f64::from(w)) as f32);
        }
        if self.residual {
            outputs[0].f32_mut().iter_mut().zip(inputs[2].f32()).for_each(|(y, r)| *y += r);
        }
    }
}

by_level! {
    /// Normalises rows of x on the CPU.
    fn normalise<S>(x: &[f32], weight: &[f32], residual: Option<&[f32]>, eps: f32, y: &mut [f32]) {
        let width = weight.len();
        for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            let scale = 1.0 / (lane_sum(x, |v| v * v) / width as f32 + eps).sqrt();
            for i in 0..width {
                y[i] = x[i] * scale * weight[i];
            }
            if let Some(residual) = residual {
                y.iter_mut().zip(&residual[row * width..]).for_each(|(y, r)| *y += r);
            }
        }
    }
}
