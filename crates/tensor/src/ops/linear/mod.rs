//! A linear layer: x Wᵀ, with the bias and the residual sum that follow it; its gradients; and products of two tensors.
//!
//! Each kind of kernel is a file of this folder, with a WGSL file of the same name in `shaders/linear`. The table
//! `VARIANTS` is the only place that decides between them.

mod backward;
mod dot;
mod lanes;
mod matrices;
mod pairs;
mod product;
mod quantize;
mod rows;
mod sweep;
#[cfg(test)]
mod tests;
mod tiles;

use std::sync::Arc;

use bayan_gpu::shader::Defines;
use bayan_gpu::{GpuError, Slice};

pub use backward::LinearBackward;
pub use product::{Product, View};
pub use quantize::{Int8Order, Quantize, Rounding};

use crate::cpu::CpuStep;
use crate::cpu::product::linear as product_on_cpu;
use crate::format_shaders;
use crate::graph::{Graph, Matrix, Op, Operand, Shard, State, Tensor, Values};
use crate::ops::elementwise::Activation;
use crate::ops::training::unpack_rows;
use crate::passes::{Backward, BackwardError};
use crate::plan::{Extent, KernelText, Lowering, Target, Variant};

/// The kernels; the first that fits is used.
const VARIANTS: &[Variant<Linear>] = &[
    matrices::VARIANT, // hardware with cooperative matrices, many tokens: activations in f16
    dot::VARIANT,      // hardware, many tokens: packed dot products with activations in int8
    tiles::VARIANT,    // hardware, many tokens
    pairs::VARIANT,    // software with subgroups of 4, many tokens: integer products of pairs
    sweep::VARIANT,    // software with subgroups of 4, many tokens
    lanes::VARIANT,    // software with subgroups
    rows::VARIANT,     // everything else
];

/// y[t, n] = Σ_k weight[n, k] x[t, k], with the operations before and after it that rewrites have fused into it.
///
/// Inputs: x [T, K], then, if enabled, the norm's weight \[K\], the bias \[N\] and the residual [T, N]. Output [T,
/// N], gated [T, N/2].
#[derive(Debug, Clone)]
pub struct Linear {
    /// The weights [N, K].
    pub weight: Arc<Matrix>,
    /// The epsilon of the root-mean-square norm that is applied to x first, if there is one.
    pub norm: Option<f32>,
    /// Whether a bias is added.
    pub bias: bool,
    /// Gating, applied to the sums: activation(first half) · second half.
    pub gate: Option<Activation>,
    /// An activation of the sums, where there is no gate.
    pub activation: Option<Activation>,
    /// Whether a residual is added last.
    pub residual: bool,
    /// Set if x was rounded by a rewrite. To int8: the first two inputs are its codes [T, K / 4], in this order within
    /// each word, and scales [T, K / 32, 4]. To f16: the first input is the padded output of
    /// [`ToF16`](crate::ops::ToF16).
    pub rounded: Option<Rounding>,
}

impl Graph {
    /// x [T, K] to [T, N].
    pub fn linear(&mut self, x: Tensor, weight: &Arc<Matrix>, bias: Option<&Arc<State>>) -> Tensor {
        assert_eq!(self.width(x), weight.columns(), "linear `{}`: width of x", weight.label());
        let mut inputs = vec![x];
        inputs.extend(bias.map(|bias| self.state(bias)));
        let shape = [self.rows(x), weight.rows()];
        self.apply(
            Linear {
                weight: weight.clone(),
                norm: None,
                bias: bias.is_some(),
                gate: None,
                activation: None,
                residual: false,
                rounded: None,
            },
            &inputs,
            &shape,
        )
    }
}

/// The function of a gate or an activation.
const ACTIVATE: &str = wgsl!("lib/activate.wgsl");

/// What a variant sets for one shard. The op adds the kernel's name and the planes of the shard's weights.
struct ShardKernel<'a> {
    /// The text linked before the format's: how weights are addressed and unpacked.
    library: String,
    /// The texts linked after the format's.
    texts: &'a [&'a str],
    defines: Defines,
    /// Group 0.
    bindings: Vec<Slice>,
    grid: [Extent; 3],
    turns: u64,
}

impl Linear {
    /// Whether the kernel that computes this layer also computes `fused`, the layer with more operations in it. Only
    /// then does the rewrite pay.
    pub(crate) fn same_variant(&self, fused: &Linear, target: &Target<'_>) -> bool {
        let name = |linear: &Linear| Variant::first(VARIANTS, linear, target).map(|variant| variant.name);
        name(self).is_some() && name(self) == name(fused)
    }

    /// How activations should be rounded for the kernel that computes this layer on this target; `None` for kernels
    /// that read f32, which are used only where no other fits.
    pub(crate) fn rounding(&self, target: &Target<'_>) -> Option<Rounding> {
        let fits = |&rounding: &Rounding| {
            Variant::first(VARIANTS, &Linear { rounded: Some(rounding), ..self.clone() }, target).is_some()
        };
        Rounding::ALL.into_iter().find(fits).filter(|_| self.rounded.is_none())
    }

    /// Whether nothing but a bias and a residual is joined with the product.
    fn is_plain(&self) -> bool {
        self.norm.is_none() && self.gate.is_none() && self.activation.is_none()
    }

    /// Whether every row of the weights and of x consists of whole blocks of 32.
    fn whole_blocks(&self) -> bool {
        self.weight.columns().is_multiple_of(32)
    }

    /// Whether the by-rows kernels compute the layer: they read f32, apply a norm to whole blocks, and compute a row of
    /// the gate beside the matching row of the other half.
    fn fits_rows(&self) -> bool {
        self.rounded.is_none() && (self.norm.is_none() || self.whole_blocks()) && self.gate_divides()
    }

    /// Whether the gate, if there is one, halves the weights into whole groups of rows of one shard.
    fn gate_divides(&self) -> bool {
        self.gate.is_none() || ((self.weight.rows() / 2).is_multiple_of(32) && self.weight.shards().len() <= 1)
    }

    /// Whether the weights are quantized, in whole blocks, so that activations may be rounded to int8.
    pub(crate) fn fits_int8(&self) -> bool {
        !self.weight.has_dense_rows() && self.whole_blocks() && self.norm.is_none()
    }

    /// The names that all kernels read.
    fn defines(&self) -> Defines {
        let ragged = !self.whole_blocks();
        Defines::new()
            .set("BIAS", self.bias)
            .set("RESIDUAL", self.residual)
            .set("RAGGED", ragged)
            .set("XVEC", if ragged { "f32" } else { "vec4<f32>" })
    }

    /// The names that kernels read which apply a gate or an activation.
    fn gate_defines(&self) -> Defines {
        self.defines()
            .set("GATED", self.gate.is_some())
            .set("ACTIVATED", self.activation.is_some())
            .set("ACTIVATION", self.gate.or(self.activation).unwrap_or(Activation::Silu).name())
    }

    /// The bindings of group 0: `first` inputs, the output, the sizes, the other inputs.
    fn bindings(&self, to: &Lowering<'_>, first: usize, sizes: &[usize]) -> Result<Vec<Slice>, GpuError> {
        let sizes: Vec<u32> = sizes.iter().map(|&n| n as u32).collect();
        let mut bindings: Vec<Slice> = (0..first).map(|i| to.input(i)).collect();
        bindings.extend([to.output(0), to.numbers(&sizes)?]);
        bindings.extend((first..to.input_count()).map(|i| to.input(i)));
        Ok(bindings)
    }

    /// Emits a variant's kernel for one shard.
    fn emit(
        &self,
        to: &mut Lowering<'_>,
        variant: &str,
        shard: &Shard,
        kernel: ShardKernel<'_>,
    ) -> Result<(), GpuError> {
        let flags = [
            (self.norm.is_some(), "norm "),
            (self.gate.is_some(), "gate "),
            (self.activation.is_some(), "act "),
            (self.residual, "add "),
        ];
        let flags: String = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
        let (format, rows, columns) = (shard.format.name(), self.weight.rows(), self.weight.columns());
        let name = format!("linear_{variant} {flags}{format} {rows}x{columns}");
        let mut parts = vec![kernel.library.as_str(), format_shaders::shader(shard.format)];
        parts.extend(kernel.texts);
        let text = KernelText { name: &name, parts: &parts, defines: kernel.defines, turns: kernel.turns };
        to.emit(text, &[kernel.bindings, shard.planes()], kernel.grid)
    }
}

impl Op for Linear {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "linear"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        to.emit_first(VARIANTS, self)
    }

    fn work(&self, inputs: &[&[usize]], _outputs: &[&[usize]]) -> u64 {
        inputs[0][0] as u64 * self.weight.rows() as u64 * self.weight.columns() as u64
    }

    fn matrix(&self) -> Option<&Arc<Matrix>> {
        Some(&self.weight)
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        if self.norm.is_some() || self.gate.is_some() || self.activation.is_some() || self.rounded.is_some() {
            return Err(BackwardError("linear joined with its norm or gate by a rewrite"));
        }
        let Some(dy) = to.gradient(0) else { return Ok(()) };
        let x = to.input(0);
        if self.bias && to.requires_grad(to.input(1)) {
            to.contribute(to.input(1), |graph, db, add| graph.column_sum(dy, db, add));
        }
        if let Some((gradient, first_row)) = to.matrix_gradient(&self.weight) {
            to.graph().weight_gradient(dy, x, gradient, first_row);
        }
        if to.requires_grad(x) {
            to.contribute(x, |graph, dx, add| graph.linear_backward(dy, &self.weight, dx, add));
        }
        if self.residual && to.requires_grad(to.input(1 + usize::from(self.bias))) {
            to.pass(dy, to.input(1 + usize::from(self.bias)));
        }
        Ok(())
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        let plain = self.is_plain() && !self.residual && self.rounded.is_none();
        let bias = self.bias.then(|| step.inputs[1].f32());
        let done =
            plain && product_on_cpu(step.cpu, &self.weight, step.inputs[0].f32(), bias, step.outputs[0].f32_mut());
        if !done {
            step.by_reference(&|inputs, outputs| self.reference(inputs, outputs));
        }
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let (rows, width) = (self.weight.rows(), self.weight.rows() / if self.gate.is_some() { 2 } else { 1 });
        let int8 = matches!(self.rounded, Some(Rounding::Int8(_)));
        let mut rest = inputs[1 + usize::from(int8)..].iter();
        let mut next = |flag: bool| if flag { rest.next() } else { None };
        let (gamma, bias, residual) = (next(self.norm.is_some()), next(self.bias), next(self.residual));
        let mut weights = Vec::new();
        let mut sums = vec![0f64; inputs[0].shape[0] * rows];
        let dequantized = match self.rounded {
            Some(Rounding::Int8(order)) => order.dequantize(inputs[0].u32(), inputs[1].f32()),
            Some(Rounding::F16) => unpack_rows(&inputs[0], self.weight.columns()),
            None => inputs[0].f32().to_vec(),
        };
        let x: Vec<Vec<f64>> =
            dequantized.chunks_exact(self.weight.columns()).map(|x| self.normalised(x, gamma)).collect();
        for n in 0..rows {
            self.weight.host_row(n, &mut weights);
            for (t, x) in x.iter().enumerate() {
                let sum: f64 = x.iter().zip(&weights).map(|(&a, &b)| a * f64::from(b)).sum();
                sums[t * rows + n] = sum + bias.map_or(0.0, |b| f64::from(b.f32()[n]));
            }
        }
        for (t, y) in outputs[0].f32_mut().chunks_exact_mut(width).enumerate() {
            for (n, y) in y.iter_mut().enumerate() {
                let first = sums[t * rows + n];
                let value = self.gate.map_or(first, |gate| gate.apply(first) * sums[t * rows + width + n]);
                let value = self.activation.map_or(value, |activation| activation.apply(value));
                *y = (value + residual.map_or(0.0, |r| f64::from(r.f32()[t * width + n]))) as f32;
            }
        }
    }
}

impl Linear {
    fn normalised(&self, x: &[f32], gamma: Option<&Operand<'_>>) -> Vec<f64> {
        let values = x.iter().map(|&v| f64::from(v));
        let (Some(gamma), Some(eps)) = (gamma, self.norm) else { return values.collect() };
        let mean = values.clone().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        values.zip(gamma.f32()).map(|(v, &g)| v * scale * f64::from(g)).collect()
    }
}
