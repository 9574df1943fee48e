//! Layer normalisation (Ba et al., 2016), with or without a bias.
//!
//! The kernel passes over the row twice, for the mean and then for the squared deviations. Rejected: one pass, which
//! subtracts two large numbers where a row has a large mean.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::cpu::simd::by_level;
use crate::cpu::{CpuStep, lane_sum};
use crate::graph::{Graph, Op, Operand, State, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{KernelText, Lowering, grid};

/// y\[t\] = (x\[t\] − mean) / sqrt(variance + eps) · weight + bias; inputs x [T, D], weight \[D\], and if enabled
/// bias \[D\].
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
    /// Whether there is a bias.
    pub bias: bool,
}

impl Graph {
    /// Normalises the rows of x [T, D].
    pub fn layer_norm(&mut self, x: Tensor, weight: &Arc<State>, bias: Option<&Arc<State>>, eps: f32) -> Tensor {
        let mut inputs = vec![x, self.weight(weight)];
        inputs.extend(bias.map(|bias| self.weight(bias)));
        assert!(inputs[1..].iter().all(|&t| self.width(t) == self.width(x)), "layer_norm: width of x, weight and bias");
        let shape = self.shape(x).to_vec();
        self.apply(LayerNorm { eps, bias: bias.is_some() }, &inputs, &shape)
    }
}

impl Op for LayerNorm {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let shape = to.input_shape(0);
        let width = shape[shape.len() - 1];
        let rows = shape[..shape.len() - 1].iter().product();
        let threads = grid::row_threads(to, width.div_ceil(4));
        let defines = Defines::new().set("EPS", self.eps).set("INVERSE_D", 1.0 / width as f32).set("BIAS", self.bias);
        let (defines, vectors) = grid::vectors(defines, width);
        let defines = grid::reduction(to, defines.set("WIDTH", vectors), threads);
        let parts = [wgsl!("lib/reduce.wgsl"), wgsl!("norm/layer.wgsl")];
        let mut bindings = vec![to.input(0), to.input(1), to.output(0)];
        bindings.extend(self.bias.then(|| to.input(2)));
        to.emit(
            KernelText {
                name: "layer_norm",
                parts: &parts,
                defines,
                turns: 3 * grid::walk(vectors, threads) + 4 * grid::REDUCTION,
            },
            &[bindings],
            grid::rows_grid(rows),
        )
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let (x, weight, eps) = (to.input(0), to.input(1), self.eps);
        if let (Some(dy), true) = (to.gradient(0), to.requires_grad(weight)) {
            let width = to.graph().width(weight);
            let parts = to.graph().norm_weight_gradient(x, dy, width, eps, true);
            to.contribute(weight, |graph, dw, add| graph.column_sum(parts, dw, add));
        }
        if let (Some(dy), true) = (to.gradient(0), self.bias && to.requires_grad(to.input(2))) {
            to.contribute(to.input(2), |graph, db, add| graph.column_sum(dy, db, add));
        }
        if let (Some(dy), true) = (to.gradient(0), to.requires_grad(x)) {
            to.contribute(x, |graph, dx, add| graph.layer_norm_backward(x, weight, dy, dx, eps, add));
        }
        Ok(())
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        let (x, weight) = (step.inputs[0].f32(), step.inputs[1].f32());
        let bias = self.bias.then(|| step.inputs[2].f32());
        let (width, level) = (weight.len(), step.cpu.level());
        step.cpu.rows(step.outputs[0].f32_mut(), width, |range, y| {
            let x = &x[range.start * width..range.end * width];
            normalise(level, x, weight, bias, self.eps, y);
        });
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let weight = inputs[1].f32();
        let d = weight.len() as f64;
        let rows = inputs[0].f32().chunks_exact(weight.len());
        for (x, y) in rows.zip(outputs[0].f32_mut().chunks_exact_mut(weight.len())) {
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / d;
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / d;
            let scale = 1.0 / (variance + f64::from(self.eps)).sqrt();
            for (i, y) in y.iter_mut().enumerate() {
                let bias = if self.bias { f64::from(inputs[2].f32()[i]) } else { 0.0 };
                *y = ((f64::from(x[i]) - mean) * scale * f64::from(weight[i]) + bias) as f32;
            }
        }
    }
}

by_level! {
    /// Normalises rows of x on the CPU.
    fn normalise<S>(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, y: &mut [f32]) {
        let width = weight.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let mean = lane_sum(x, |v| v) / width as f32;
            let scale = 1.0 / (lane_sum(x, |v| (v - mean) * (v - mean)) / width as f32 + eps).sqrt();
            for i in 0..width {
                y[i] = (x[i] - mean) * scale * weight[i];
            }
            if let Some(bias) = bias {
                y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
        }
    }
}
