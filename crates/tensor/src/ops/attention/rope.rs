//! Rotary position embedding (Su et al., 2021) of queries and keys. The op first splits the fused projection and, if
//! the architecture requires it, normalises each head.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::cpu::simd::by_level;
use crate::cpu::{CpuStep, Shared, lane_sum};
use crate::graph::{Dtype, Graph, Op, Operand, State, Tensor, Values};
use crate::passes::{Backward, BackwardError};
use crate::plan::{Extent, KernelText, Lowering, grid};

/// Inputs: qkv [T, heads of the [`Projection`] · d], positions \[T\], table [positions, R] with cosine and sine
/// alternating for each of the R/2 angles, and with `norm_eps` also q_norm and k_norm, whose sizes [`HeadNorm`] states.
/// Outputs: q [T, H, d], k [T, K, d], v [T, K, d]. Where there are only queries, there are no k_norm, k and v.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rope {
    /// Query heads H.
    pub heads: usize,
    /// Key-value heads K.
    pub kv_heads: usize,
    /// Head size d.
    pub head_dim: usize,
    /// R, the number of the d values of a head that are rotated; with 0 the projection is only split.
    pub rotary_dim: usize,
    /// Pairs are (2i, 2i + 1) instead of (i, i + R/2).
    pub interleaved: bool,
    /// The epsilon of the normalisation of q and k before the rotation, if there is one.
    pub norm_eps: Option<f32>,
    /// Which values are normalised together.
    pub norm: HeadNorm,
    /// Each head of the values is normalised too, without weights (Gemma 4).
    pub norm_values: bool,
    /// The heads of a row of qkv.
    pub projection: Projection,
}

/// The order of the heads in a row of the fused projection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Projection {
    /// H queries, K keys, K values.
    #[default]
    Separate,
    /// H queries, K keys, which are also the values: before their norm and rotation (Gemma 4).
    ValuesAreKeys,
    /// H queries alone; keys and values are another layer's (Gemma 4).
    Queries,
    /// H pairs of a query and d numbers of its gate, which are left to others; then K keys, K values (Qwen 3.5).
    GatedQueries,
}

/// Some heads of a row of qkv, and the output to which they go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    /// Index of the output: queries, keys, values.
    pub output: usize,
    /// The first head of the row.
    pub first: usize,
    /// Distance from one head to the next, in heads.
    pub step: usize,
    /// Number of heads.
    pub heads: usize,
    /// Whether each head is normalised, and whether by weights.
    pub norm: bool,
    pub weighted: bool,
    /// Whether an earlier section has the same heads.
    pub again: bool,
}

impl Section {
    /// The head of the row that is number `index` of this section.
    pub fn at(&self, index: usize) -> usize {
        self.first + index * self.step
    }
}

/// How queries and keys are normalised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HeadNorm {
    /// Root mean square of each head; weights \[d\] for all heads (Qwen 3, Gemma 3).
    #[default]
    Rms,
    /// Root mean square over all heads together; weights [H d] and [K d] (OLMo 2).
    RmsWhole,
    /// Layer normalisation of each head without a bias; weights [H d] and [K d] (Cohere).
    Layer,
}

impl HeadNorm {
    /// For one of `heads` heads: first value and number of values that are normalised together, and index of the head's
    /// first weight.
    fn span(self, head: usize, heads: usize, d: usize) -> (usize, usize, usize) {
        match self {
            HeadNorm::Rms => (head * d, d, 0),
            HeadNorm::RmsWhole => (0, heads * d, 0),
            HeadNorm::Layer => (head * d, d, head * d),
        }
    }

    /// Whether every head has its own weights.
    pub(crate) fn each(self) -> bool {
        self != HeadNorm::Rms
    }

    /// For one head, given the values of all `heads` heads: mean and inverse root, the range normalised together, and
    /// the index of the head's first weight.
    pub(crate) fn about(
        self,
        row: &[f32],
        head: usize,
        heads: usize,
        eps: f32,
    ) -> (f64, f64, std::ops::Range<usize>, usize) {
        let (first, count, weights) = self.span(head, heads, row.len() / heads);
        let values = || row[first..first + count].iter().map(|&v| f64::from(v));
        let mean = if self == HeadNorm::Layer { values().sum::<f64>() / count as f64 } else { 0.0 };
        let variance = values().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
        (mean, 1.0 / (variance + f64::from(eps)).sqrt(), first..first + count, weights)
    }
}

/// Indices of the two values of pair `i`; `half` is R/2.
pub(crate) fn pair(i: usize, half: usize, interleaved: bool) -> (usize, usize) {
    if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) }
}

impl Graph {
    /// Normalises and rotates queries alone; see [`Projection::Queries`].
    pub fn rope_queries(
        &mut self,
        rope: Rope,
        queries: Tensor,
        positions: Tensor,
        table: &Arc<State>,
        norm: Option<&Arc<State>>,
    ) -> Tensor {
        let tokens = self.shape(queries)[0];
        assert_eq!(rope.projection, Projection::Queries, "rope_queries: projection");
        assert_eq!(self.width(queries), rope.width(), "rope_queries: width of the projection");
        assert_eq!(norm.is_some(), rope.norm_eps.is_some(), "rope_queries: weights and epsilon of the head norm");
        let mut inputs = vec![queries, positions, self.state(table)];
        inputs.extend(norm.map(|norm| self.weight(norm)));
        let shape = [tokens, rope.heads, rope.head_dim];
        self.apply(rope, &inputs, &shape)
    }

    /// Splits, normalises and rotates; see [`Rope`]. `norms` are the weights of queries and keys.
    pub fn rope(
        &mut self,
        rope: Rope,
        qkv: Tensor,
        positions: Tensor,
        table: &Arc<State>,
        norms: Option<(&Arc<State>, &Arc<State>)>,
    ) -> [Tensor; 3] {
        let tokens = self.shape(qkv)[0];
        assert!(rope.projection != Projection::Queries, "rope: keys and values");
        assert_eq!(self.width(qkv), rope.width(), "rope: width of qkv");
        assert_eq!(norms.is_some(), rope.norm_eps.is_some(), "rope: weights and epsilon of the head norms");
        assert!(
            rope.norm == HeadNorm::Rms || rope.projection == Projection::Separate && !rope.norm_values,
            "rope: norms over all heads, or with a mean, of another projection than queries, keys and values"
        );
        let mut inputs = vec![qkv, positions, self.state(table)];
        if let Some((q_norm, k_norm)) = norms {
            inputs.extend([self.weight(q_norm), self.weight(k_norm)]);
        }
        let outputs = [rope.heads, rope.kv_heads, rope.kv_heads]
            .map(|heads| self.tensor(&[tokens, heads, rope.head_dim], Dtype::F32));
        self.record(rope, &inputs, &outputs);
        outputs
    }
}

impl Rope {
    /// Number of heads in a row of the projection.
    pub(super) fn row_heads(&self) -> usize {
        match self.projection {
            Projection::Separate => self.heads + 2 * self.kv_heads,
            Projection::ValuesAreKeys => self.heads + self.kv_heads,
            Projection::Queries => self.heads,
            Projection::GatedQueries => 2 * (self.heads + self.kv_heads),
        }
    }

    /// Width of a row of the projection.
    pub fn width(&self) -> usize {
        self.row_heads() * self.head_dim
    }

    /// The sections of the projection, in the order of the outputs.
    pub(super) fn sections(&self) -> Vec<Section> {
        let step = if self.projection == Projection::GatedQueries { 2 } else { 1 };
        let (norm, shared) = (self.norm_eps.is_some(), self.projection == Projection::ValuesAreKeys);
        let keys = step * self.heads;
        let values = if shared { keys } else { keys + self.kv_heads };
        let of = |output, first, step, heads| Section {
            output,
            first,
            step,
            heads,
            norm: norm && (output < 2 || self.norm_values),
            weighted: output < 2,
            again: output == 2 && shared,
        };
        let mut all = vec![of(0, 0, step, self.heads)];
        if self.projection != Projection::Queries {
            all.extend([of(1, keys, 1, self.kv_heads), of(2, values, 1, self.kv_heads)]);
        }
        all
    }

    fn defines(&self) -> Defines {
        let [keys, values] = [1, 2].map(|output| self.sections().get(output).map_or(0, |section| section.first));
        self.name(Defines::new().set("H", self.heads).set("K", self.kv_heads).set("d", self.head_dim))
            .set("ROW", self.row_heads())
            .set("QUERY_STEP", self.sections()[0].step)
            .set("KEYS", keys)
            .set("VALUES", values)
            .set("ONLY_QUERIES", self.projection == Projection::Queries)
            .set("NORM_VALUES", self.norm_values && self.norm_eps.is_some())
    }

    /// The names that kernels read, except numbers of heads and head size.
    pub(crate) fn name(&self, defines: Defines) -> Defines {
        defines
            .set("ROTARY", self.rotary_dim)
            .set("INTERLEAVED", self.interleaved)
            .set("QK_NORM", self.norm_eps.is_some())
            .set("QK_WHOLE", self.norm == HeadNorm::RmsWhole)
            .set("QK_MEAN", self.norm == HeadNorm::Layer)
            .set("QK_EACH", self.norm.each())
            .set("EPS", self.norm_eps.unwrap_or(0.0))
    }
}

impl Op for Rope {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "rope"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let tokens = to.input_shape(0)[0];
        let threads = grid::row_threads(to, self.head_dim.div_ceil(2));
        let defines = grid::reduction(to, self.defines(), threads);
        let sections = self.sections();
        let mut bindings = vec![to.input(0), to.input(1), to.input(2)];
        bindings.extend(sections.iter().map(|section| to.output(section.output)));
        if self.norm_eps.is_some() {
            bindings.extend((0..sections.len().min(2)).map(|norm| to.input(3 + norm)));
        }
        let heads: usize = sections.iter().map(|section| section.heads).sum();
        let turns = 2 * grid::walk(self.head_dim, threads)
            + 2 * grid::walk(self.heads * self.head_dim, threads)
            + 2 * grid::REDUCTION;
        let parts = [wgsl!("lib/reduce.wgsl"), wgsl!("lib/head_norm.wgsl"), wgsl!("attention/rope.wgsl")];
        let grid = [Extent::Fixed(heads as u32), Extent::Fixed(tokens as u32), Extent::Fixed(1)];
        to.emit(KernelText { name: "rope", parts: &parts, defines, turns }, &[bindings], grid)
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let (qkv, positions, table) = (to.input(0), to.input(1), to.input(2));
        let count = self.sections().len();
        let norms: Vec<Tensor> = match self.norm_eps {
            Some(_) => (0..count.min(2)).map(|norm| to.input(3 + norm)).collect(),
            None => Vec::new(),
        };
        let trained = norms.iter().any(|&norm| to.requires_grad(norm));
        let gradients: Option<Vec<Tensor>> = (0..count).map(|output| to.gradient(output)).collect();
        if let (Some(gradients), true) = (gradients, to.requires_grad(qkv)) {
            let read: Vec<Tensor> = if norms.is_empty() { Vec::new() } else { [&[qkv], norms.as_slice()].concat() };
            let (dqkv, parts) = to.graph().rope_backward(self.clone(), &gradients, positions, table, &read, trained);
            for (norm, part) in norms.into_iter().zip(parts) {
                to.contribute(norm, |graph, dw, add| graph.column_sum(part, dw, add));
            }
            to.pass(dqkv, qkv);
        }
        Ok(())
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        if self.projection != Projection::Separate || self.norm_values {
            return step.by_reference(&|inputs, outputs| self.reference(inputs, outputs));
        }
        let (qkv, positions, table) = (step.inputs[0], step.inputs[1].u32(), step.inputs[2].f32());
        let norms = [3, 4].map(|input| step.inputs.get(input).map(Operand::f32));
        let [q, k, v] = step.outputs else { unreachable!("rope has three outputs") };
        let to = [q, k, v].map(|values| Shared::new(values.f32_mut()));
        let (qkv, width, level) = (qkv.f32(), qkv.width(), step.cpu.level());
        step.cpu.split(positions.len(), (1 << 12) / width, |tokens| {
            for t in tokens {
                let row = &qkv[t * width..][..width];
                let mut at = 0;
                for (part, heads) in [self.heads, self.kv_heads, self.kv_heads].into_iter().enumerate() {
                    let count = heads * self.head_dim;
                    // SAFETY: each token is in one range.
                    let y = unsafe { to[part].part(t * count..(t + 1) * count) };
                    let norm = norms.get(part).copied().flatten();
                    let angles = &table[positions[t] as usize * (self.rotary_dim / 2) * 2..][..self.rotary_dim / 2 * 2];
                    turn(level, self, &row[at..at + count], norm, if part < 2 { angles } else { &[] }, y);
                    at += count;
                }
            }
        });
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let d = self.head_dim;
        let half = self.rotary_dim / 2;
        let table = inputs[2].f32();
        for (t, (row, &position)) in inputs[0].rows().zip(inputs[1].u32()).enumerate() {
            for section in self.sections() {
                let heads: Vec<f32> =
                    (0..section.heads).flat_map(|head| row[section.at(head) * d..][..d].iter().copied()).collect();
                let output = section.output;
                for head in 0..section.heads {
                    let mut values: Vec<f64> = heads[head * d..(head + 1) * d].iter().map(|&v| f64::from(v)).collect();
                    if let (true, Some(eps)) = (section.norm, self.norm_eps) {
                        let (mean, scale, ..) = self.norm.about(&heads, head, section.heads, eps);
                        values.iter_mut().for_each(|v| *v = (*v - mean) * scale);
                    }
                    if section.norm && section.weighted {
                        let weights = &inputs[3 + output].f32()[if self.norm.each() { head * d } else { 0 }..];
                        values.iter_mut().zip(weights).for_each(|(v, &w)| *v *= f64::from(w));
                    }
                    for i in 0..if output < 2 { half } else { 0 } {
                        let at = (position as usize * half + i) * 2;
                        let (cos, sin) = (f64::from(table[at]), f64::from(table[at + 1]));
                        let (one, two) = pair(i, half, self.interleaved);
                        let (a, b) = (values[one], values[two]);
                        (values[one], values[two]) = (a * cos - b * sin, b * cos + a * sin);
                    }
                    let to = &mut outputs[output].f32_mut()[(t * section.heads + head) * d..][..d];
                    to.iter_mut().zip(values).for_each(|(y, v)| *y = v as f32);
                }
            }
        }
    }
}

by_level! {
    /// Normalises and rotates the heads x of one token on the CPU. Without angles, nothing is rotated.
    fn turn<S>(rope: &Rope, x: &[f32], norm: Option<&[f32]>, angles: &[f32], y: &mut [f32]) {
        let d = rope.head_dim;
        y.copy_from_slice(x);
        if let (Some(weights), Some(eps)) = (norm, rope.norm_eps) {
            let span = if rope.norm == HeadNorm::RmsWhole { y.len() } else { d };
            for (number, part) in y.chunks_exact_mut(span).enumerate() {
                let mean = if rope.norm == HeadNorm::Layer { lane_sum(part, |v| v) / span as f32 } else { 0.0 };
                let scale = 1.0 / (lane_sum(part, |v| (v - mean) * (v - mean)) / span as f32 + eps).sqrt();
                let weights = &weights[if rope.norm.each() { number * span } else { 0 }..];
                part.iter_mut().zip(weights).for_each(|(v, w)| *v = (*v - mean) * scale * w);
            }
        }
        for head in y.chunks_exact_mut(d) {
            for (i, angle) in angles.chunks_exact(2).enumerate() {
                let (one, two) = pair(i, rope.rotary_dim / 2, rope.interleaved);
                let (a, b, cos, sin) = (head[one], head[two], angle[0], angle[1]);
                (head[one], head[two]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
}
