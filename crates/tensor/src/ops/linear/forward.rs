//! A linear layer: x Wᵀ, with the bias and the residual sum that follow it.

use std::sync::Arc;

use bayan_gpu::shader::Defines;
use bayan_gpu::{Capabilities, GpuError, Slice};

use super::quantize::Packing;
use crate::format_shaders::{self, Unpacking};
use crate::graph::{Graph, Matrix, Op, Operand, Shard, State, Tensor, Values};
use crate::ops::attention::FEW_TOKENS;
use crate::ops::elementwise::Activation;
use crate::passes::{Backward, BackwardError};
use crate::plan::{Extent, KernelText, Lowering, grid, grid_2d};

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
    /// Set if x was rounded to int8: the first two inputs are its codes [T, K / 4], in this packing, and scales [T, K /
    /// 32, 4].
    pub int8: Option<Packing>,
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
                int8: None,
            },
            &inputs,
            &shape,
        )
    }
}

const ROWS: &str = wgsl!("linear/rows.wgsl");
const TILES: &str = wgsl!("linear/tiles.wgsl");
const DOT: &str = wgsl!("linear/dot.wgsl");
const SWEEP: &str = wgsl!("linear/sweep.wgsl");
const ACTIVATE: &str = wgsl!("lib/activate.wgsl");

/// Whether a product with this many tokens uses the by-rows kernel on this device. Only that kernel can be fused with a
/// norm or a gate.
pub(crate) fn by_rows(capabilities: &Capabilities, tokens: usize) -> bool {
    tokens <= FEW_TOKENS || capabilities.software
}

/// Whether a product uses activations rounded to int8 on this device, and in which packing: for packed dot products, or
/// for integer products of pairs.
pub(crate) fn takes_int8(capabilities: &Capabilities, linear: &Linear, tokens: usize) -> Option<Packing> {
    let quantized = !linear.weight.has_dense_rows() && linear.weight.columns().is_multiple_of(32);
    if !capabilities.dot || !quantized || linear.int8.is_some() || linear.norm.is_some() {
        return None;
    }
    if !by_rows(capabilities, tokens) {
        return Some(Packing::Ordered);
    }
    (sweeps(capabilities, tokens) && linear.weight.all_rows(|format| format_shaders::nibbles(format).is_some()))
        .then_some(Packing::Turned)
}

/// Whether a product with this many tokens uses the kernel that loops over tokens instead of unrolling them: on
/// software devices with subgroups of 4 (SwiftShader), whose compiler keeps little in registers. Like the tiled kernel,
/// it cannot be fused with a norm.
pub(crate) fn sweeps(capabilities: &Capabilities, tokens: usize) -> bool {
    capabilities.software && capabilities.subgroups && capabilities.subgroup_size == (4, 4) && tokens > FEW_TOKENS
}

/// Tokens per workgroup of that kernel; weights are unpacked once for all of them.
const SWEEP_COLUMNS: usize = 64;

impl Linear {
    fn defines(&self) -> Defines {
        let ragged = !self.weight.columns().is_multiple_of(32);
        Defines::new()
            .set("BIAS", self.bias)
            .set("RESIDUAL", self.residual)
            .set("RAGGED", ragged)
            .set("XVEC", if ragged { "f32" } else { "vec4<f32>" })
    }

    fn name(&self, form: &str, shard: &Shard) -> String {
        let flags = [
            (self.norm.is_some(), "norm "),
            (self.gate.is_some(), "gate "),
            (self.activation.is_some(), "act "),
            (self.residual, "add "),
        ];
        let flags: String = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
        format!("linear_{form} {flags}{} {}x{}", shard.format.name(), self.weight.rows(), self.weight.columns())
    }

    fn bindings(&self, to: &Lowering<'_>, shape: Slice) -> Vec<Slice> {
        let mut bindings = vec![to.input(0), to.output(0), shape];
        bindings.extend((1..to.input_count()).map(|i| to.input(i)));
        bindings
    }

    fn dispatch_rows(&self, to: &mut Lowering<'_>, shard: &Shard, tokens: usize) -> Result<(), GpuError> {
        let shape_of = to.tuning().rows_shape(to.capabilities());
        let sets = match self.gate {
            Some(_) => 2,
            None if shard.rows.is_multiple_of(32 * shape_of.sets) => shape_of.sets,
            None => 1,
        };
        let rows = shard.rows / sets;
        let own = 32 / shape_of.lanes * sets;
        let columns = tokens.min((shape_of.columns * shape_of.sets / sets).max(1));
        let offset = format_shaders::has_offset(shard.format);
        let (spread, quads) = (offset && shape_of.shuffle, shape_of.shuffle && shape_of.lanes == 4);
        let defines = self
            .defines()
            .set("NORM", self.norm.is_some())
            .set("EPS", self.norm.unwrap_or(0.0))
            .set("GATED", self.gate.is_some())
            .set("ACTIVATED", self.activation.is_some())
            .set("ACTIVATION", self.gate.or(self.activation).unwrap_or(Activation::Silu).name())
            .set("OFFSET", offset)
            .set("SPREAD_CODES", spread)
            .set("LANES", shape_of.lanes)
            .set("PARTS", shape_of.parts)
            .set("THREADS", shape_of.lanes * shape_of.parts)
            .set("SHUFFLE", shape_of.shuffle)
            .set("PASS", shape_of.pass())
            .set("HELD", 8usize.div_ceil(shape_of.lanes))
            .set("COLUMNS", columns)
            .set("ROWS", own)
            .set("OUTPUT_ROWS", if self.gate.is_some() { own / 2 } else { own })
            .set("SPLIT_K", shape_of.parts > 1)
            .set("BARRIER", shape_of.parts > 1 || self.norm.is_some())
            .set("SHARED_SUMS", own * columns * shape_of.lanes * shape_of.parts)
            .set("SHARED_SQUARES", columns * shape_of.lanes * shape_of.parts);
        let mut grid = grid_2d(rows.div_ceil(32), to.capabilities().max_workgroups);
        grid[2] = Extent::Fixed(tokens.div_ceil(columns) as u32);
        let Extent::Fixed(x) = grid[0] else { unreachable!("fixed") };
        let width = to.output_shape(0)[1];
        let sizes = [rows, shard.first_row, width, x as usize, tokens, self.weight.blocks(), self.weight.columns()];
        let shape = to.numbers(&sizes.map(|n| n as u32))?;
        let inputs = if shape_of.shuffle { 8usize.div_ceil(shape_of.lanes) } else { 8 };
        let ragged = if self.weight.columns().is_multiple_of(32) { 0 } else { 5 * columns * inputs };
        let norms = if self.norm.is_some() { columns * (32usize.div_ceil(shape_of.lanes) + 1) * 6 } else { 0 };
        let steps = if shape_of.shuffle { self.weight.blocks() } else { self.weight.blocks().div_ceil(shape_of.parts) };
        let joins = columns * (shape_of.lanes + 1 + (2 + own) * (shape_of.parts + 1));
        let turns = (1 + steps * (1 + 2 * ragged + norms) + joins) as u64;
        let variables = format_shaders::variables(match (spread, quads) {
            (true, _) => Unpacking::Spread,
            (false, true) => Unpacking::Masked,
            (false, false) => Unpacking::Plain,
        });
        let parts = [variables.as_str(), format_shaders::shader(shard.format), ACTIVATE, ROWS];
        let bindings = self.bindings(to, shape);
        to.emit(
            KernelText { name: &self.name("rows", shard), parts: &parts, defines, turns },
            &[bindings, shard.planes()],
            grid,
        )
    }

    fn dispatch_dot(&self, to: &mut Lowering<'_>, shard: &Shard, tokens: usize) -> Result<(), GpuError> {
        let (tm, tn, rm, rn) = if tokens > 32 { (64, 64, 4, 4) } else { (32, 64, 2, 4) };
        let defines = self.defines().set("TM", tm).set("TN", tn).set("RM", rm).set("RN", rn);
        let defines = defines.set("TM_3", tm * 3).set("TN_3", tn * 3).set("THREADS", tm / rm * (tn / rn));
        let threads = tm / rm * (tn / rn);
        let loads = grid::walk(tm * 2, threads) + grid::walk(tm, threads) + grid::walk(tn, threads);
        let turns = 1 + self.weight.blocks() as u64 * (1 + loads);
        let shape =
            to.numbers(&[shard.rows as u32, shard.first_row as u32, self.weight.rows() as u32, tokens as u32])?;
        let mut bindings = vec![to.input(0), to.input(1), to.output(0), shape];
        bindings.extend((2..to.input_count()).map(|i| to.input(i)));
        let constants = format_shaders::constants(&self.weight);
        let parts = [constants.as_str(), format_shaders::shader(shard.format), DOT];
        let grid = [
            Extent::Fixed(shard.rows.div_ceil(tn) as u32),
            Extent::Fixed(tokens.div_ceil(tm) as u32),
            Extent::Fixed(1),
        ];
        to.emit(
            KernelText { name: &self.name("dot", shard), parts: &parts, defines, turns },
            &[bindings, shard.planes()],
            grid,
        )
    }

    fn dispatch_sweep(&self, to: &mut Lowering<'_>, shard: &Shard, tokens: usize) -> Result<(), GpuError> {
        assert!(self.norm.is_none(), "a sweep takes no norm");
        let sets = if self.gate.is_some() { 2 } else { 1 };
        let (rows, own) = (shard.rows / sets, 8 / sets);
        let inputs = 1 + usize::from(self.int8.is_some());
        let defines = self
            .defines()
            .set("PAIRS", self.int8.is_some())
            .set("BIAS_AT", 2 + inputs)
            .set("RESIDUAL_AT", 2 + inputs + usize::from(self.bias))
            .set("GATED", self.gate.is_some())
            .set("ACTIVATED", self.activation.is_some())
            .set("ACTIVATION", self.gate.or(self.activation).unwrap_or(Activation::Silu).name())
            .set("OFFSET", format_shaders::nibbles(shard.format) == Some(format_shaders::Nibbles::Offset))
            .set("OWN", own)
            .set("COLUMNS", SWEEP_COLUMNS);
        let mut grid = grid_2d(rows.div_ceil(4 * own), to.capabilities().max_workgroups);
        grid[2] = Extent::Fixed(tokens.div_ceil(SWEEP_COLUMNS) as u32);
        let Extent::Fixed(x) = grid[0] else { unreachable!("fixed") };
        let width = to.output_shape(0)[1];
        let shape =
            to.numbers(&[rows, shard.first_row, width, x as usize, tokens, self.weight.blocks()].map(|n| n as u32))?;
        let mut bindings = vec![to.output(0), shape];
        bindings.extend((0..to.input_count()).map(|i| to.input(i)));
        let variables = format_shaders::variables(Unpacking::Masked);
        let parts = [variables.as_str(), format_shaders::shader(shard.format), ACTIVATE, SWEEP];
        let form = if self.int8.is_some() { "pairs" } else { "sweep" };
        let columns = tokens.min(SWEEP_COLUMNS) as u64;
        let turns = 1 + self.weight.blocks() as u64 * (2 + columns) + (columns + 1) * (2 + own as u64);
        let text = KernelText { name: &self.name(form, shard), parts: &parts, defines, turns };
        to.emit(text, &[bindings, shard.planes()], grid)
    }

    fn dispatch_tiles(&self, to: &mut Lowering<'_>, shard: &Shard, tokens: usize) -> Result<(), GpuError> {
        assert!(
            self.norm.is_none() && self.gate.is_none() && self.activation.is_none(),
            "tiles take no norm and no gate"
        );
        // 128 rows of f32 tiles take 18 KiB of workgroup memory, more than WebGPU guarantees.
        let fits = to.capabilities().f16 || to.capabilities().max_workgroup_bytes >= (64 + 64) * 9 * 16;
        let (tm, tn, rm, rn) = if tokens > 32 && fits { (64, 64, 8, 4) } else { (32, 64, 4, 4) };
        let defines = self
            .defines()
            .set("K", self.weight.columns())
            .set("TM", tm)
            .set("TN", tn)
            .set("RM", rm)
            .set("RN", rn)
            .set("RM_RN", rm * rn)
            .set("TM_9", tm * 9)
            .set("TN_9", tn * 9)
            .set("THREADS", tm / rm * (tn / rn))
            .set("HALF_TILES", to.capabilities().f16);
        let threads = tm / rm * (tn / rn);
        let loads = grid::walk(tm * 8, threads) * 6 + grid::walk(tn, threads) * 10;
        let turns = 1 + self.weight.blocks() as u64 * (10 + loads) + ((rm + 1) * (2 + rn)) as u64;
        let shape =
            to.numbers(&[shard.rows as u32, shard.first_row as u32, self.weight.rows() as u32, tokens as u32])?;
        let constants = format_shaders::constants(&self.weight);
        let parts = [constants.as_str(), format_shaders::shader(shard.format), TILES];
        let bindings = self.bindings(to, shape);
        let grid = [
            Extent::Fixed(shard.rows.div_ceil(tn) as u32),
            Extent::Fixed(tokens.div_ceil(tm) as u32),
            Extent::Fixed(1),
        ];
        to.emit(
            KernelText { name: &self.name("tiles", shard), parts: &parts, defines, turns },
            &[bindings, shard.planes()],
            grid,
        )
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
            match self.int8 {
                Some(Packing::Turned) => self.dispatch_sweep(to, shard, tokens)?,
                Some(Packing::Ordered) => self.dispatch_dot(to, shard, tokens)?,
                None if self.norm.is_none()
                    && self.weight.columns().is_multiple_of(32)
                    && sweeps(to.capabilities(), tokens) =>
                {
                    self.dispatch_sweep(to, shard, tokens)?;
                }
                None if by_rows(to.capabilities(), tokens) => self.dispatch_rows(to, shard, tokens)?,
                None => self.dispatch_tiles(to, shard, tokens)?,
            }
        }
        Ok(())
    }

    fn work(&self, inputs: &[&[usize]], _outputs: &[&[usize]]) -> u64 {
        inputs[0][0] as u64 * self.weight.rows() as u64 * self.weight.columns() as u64
    }

    fn matrix(&self) -> Option<&Arc<Matrix>> {
        Some(&self.weight)
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        if self.norm.is_some() || self.gate.is_some() || self.activation.is_some() || self.int8.is_some() {
            return Err(BackwardError("linear joined with its norm or gate by a rewrite"));
        }
        let Some(dy) = to.gradient(0) else { return Ok(()) };
        let x = to.input(0);
        if self.bias && to.wants(to.input(1)) {
            to.contribute(to.input(1), |graph, db, add| graph.column_sum(dy, db, add));
        }
        if let Some((gradient, first_row)) = to.matrix_gradient(&self.weight) {
            to.graph().weight_gradient(dy, x, gradient, first_row);
        }
        if to.wants(x) {
            to.contribute(x, |graph, dx, add| graph.linear_backward(dy, &self.weight, dx, add));
        }
        if self.residual && to.wants(to.input(1 + usize::from(self.bias))) {
            to.pass(dy, to.input(1 + usize::from(self.bias)));
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let (rows, width) = (self.weight.rows(), self.weight.rows() / if self.gate.is_some() { 2 } else { 1 });
        let mut rest = inputs[1 + usize::from(self.int8.is_some())..].iter();
        let mut next = |flag: bool| if flag { rest.next() } else { None };
        let (gamma, bias, residual) = (next(self.norm.is_some()), next(self.bias), next(self.residual));
        let mut weights = Vec::new();
        let mut sums = vec![0f64; inputs[0].shape[0] * rows];
        let dequantized = match self.int8 {
            Some(packing) => packing.dequantize(inputs[0].u32(), inputs[1].f32()),
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
