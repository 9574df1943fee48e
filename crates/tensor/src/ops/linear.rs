//! A linear layer: x Wᵀ, with the bias and the residual sum that follow it.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::attention::FEW_TOKENS;
use crate::graph::{Graph, Tensor};
use crate::lower::{Extent, KernelText, Lowering, grid_2d};
use crate::matrix::{Matrix, Shard};
use crate::op::{Op, Operand};
use crate::quant;
use crate::state::State;
use crate::values::Values;

/// y[t, n] = Σ_k weight[n, k] x[t, k] (+ bias[n]) (+ residual[t, n]); inputs x [T, K], then bias [N] and residual [T, N] where flagged.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The weights [N, K].
    pub weight: Arc<Matrix>,
    /// Whether a bias is among the inputs.
    pub bias: bool,
    /// Whether a residual is among the inputs.
    pub residual: bool,
}

impl Graph {
    /// x [T, K] to [T, N].
    pub fn linear(&mut self, x: Tensor, weight: &Arc<Matrix>, bias: Option<&Arc<State>>) -> Tensor {
        assert_eq!(self.width(x), weight.columns(), "linear `{}`: width of x", weight.label());
        let mut inputs = vec![x];
        inputs.extend(bias.map(|bias| self.state(bias)));
        let shape = [self.rows(x), weight.rows()];
        self.apply(Linear { weight: weight.clone(), bias: bias.is_some(), residual: false }, &inputs, &shape)
    }
}

const REDUCE: &str = include_str!("../../../../shaders/lib/reduce.wgsl");
const MATVEC: &str = include_str!("../../../../shaders/matvec.wgsl");
const MATMUL: &str = include_str!("../../../../shaders/matmul.wgsl");

impl Linear {
    fn defines(&self) -> Defines {
        let k = self.weight.columns();
        let ragged = !k.is_multiple_of(32);
        Defines::new()
            .set("K", k)
            .set("BIAS", self.bias)
            .set("RESIDUAL", self.residual)
            .set("RAGGED", ragged)
            .set("XVEC", if ragged { "f32" } else { "vec4<f32>" })
    }

    fn bindings(&self, to: &Lowering<'_>, shape: bayan_gpu::Slice) -> Vec<bayan_gpu::Slice> {
        let mut bindings = vec![to.input(0), to.output(0), shape];
        bindings.extend((1..to.input_count()).map(|i| to.input(i)));
        bindings
    }

    fn dispatch_matvec(&self, to: &mut Lowering<'_>, shard: &Shard, tokens: usize) -> Result<(), GpuError> {
        let tuned = to.tuning().matvec;
        let defines = self.defines().set("ROWS", tuned.rows).set("COLUMNS", tokens).set("ROWS_COLUMNS", tuned.rows * tokens).set("COLUMNS_8", tokens * 8);
        let defines = super::reduction(to, defines, tuned.threads);
        let grid = grid_2d(shard.rows.div_ceil(tuned.rows), to.capabilities().max_workgroups);
        let Extent::Fixed(x) = grid[0] else { unreachable!("fixed") };
        let shape = to.numbers(&[shard.rows as u32, shard.first_row as u32, self.weight.rows() as u32, x])?;
        let constants = quant::constants(&self.weight);
        let parts = [constants.as_str(), quant::shader(self.weight.format()), REDUCE, MATVEC];
        let name = format!("matvec {} {}x{}", self.weight.format().name(), self.weight.rows(), self.weight.columns());
        let bindings = self.bindings(to, shape);
        to.emit(KernelText { name: &name, parts: &parts, defines }, &[bindings, shard.planes()], grid)
    }

    fn dispatch_matmul(&self, to: &mut Lowering<'_>, shard: &Shard, tokens: usize) -> Result<(), GpuError> {
        let (tm, tn, rm, rn) = if tokens > 32 { (64, 64, 8, 4) } else { (32, 64, 4, 4) };
        let defines = self
            .defines()
            .set("TM", tm)
            .set("TN", tn)
            .set("RM", rm)
            .set("RN", rn)
            .set("RM_RN", rm * rn)
            .set("TM_9", tm * 9)
            .set("TN_9", tn * 9)
            .set("THREADS", tm / rm * (tn / rn))
            .set("HALF_TILES", to.capabilities().f16);
        let shape = to.numbers(&[shard.rows as u32, shard.first_row as u32, self.weight.rows() as u32, tokens as u32])?;
        let constants = quant::constants(&self.weight);
        let parts = [constants.as_str(), quant::shader(self.weight.format()), MATMUL];
        let name = format!("matmul {} {}x{}", self.weight.format().name(), self.weight.rows(), self.weight.columns());
        let bindings = self.bindings(to, shape);
        let grid = [Extent::Fixed(shard.rows.div_ceil(tn) as u32), Extent::Fixed(tokens.div_ceil(tm) as u32), Extent::Fixed(1)];
        to.emit(KernelText { name: &name, parts: &parts, defines }, &[bindings, shard.planes()], grid)
    }
}

impl Op for Linear {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "linear"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let tokens = to.output_shape(0)[0];
        let weight = self.weight.clone();
        for shard in weight.shards() {
            if tokens <= FEW_TOKENS {
                self.dispatch_matvec(to, shard, tokens)?;
            } else {
                self.dispatch_matmul(to, shard, tokens)?;
            }
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let rows = self.weight.rows();
        let bias = self.bias.then(|| inputs[1].f32());
        let residual = self.residual.then(|| inputs[1 + usize::from(self.bias)].f32());
        let mut weights = Vec::new();
        let y = outputs[0].f32_mut();
        for n in 0..rows {
            self.weight.host_row(n, &mut weights);
            for (t, x) in inputs[0].rows().enumerate() {
                let mut sum: f64 = x.iter().zip(&weights).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                sum += bias.map_or(0.0, |b| f64::from(b[n]));
                sum += residual.map_or(0.0, |r| f64::from(r[t * rows + n]));
                y[t * rows + n] = sum as f32;
            }
        }
    }
}
