//! Causal attention over the cache, with grouped queries, an optional sliding window and logit soft-capping.

mod lanes;
mod run;
mod split;
mod tiles;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

pub(super) use run::Run;

use super::cache::{CacheElement, CacheRows, ROW};
use crate::cpu::attend::{Heads, attend};
use crate::cpu::{CpuStep, Shared};
use crate::graph::{Graph, Op, Operand, Tensor, Values, elements};
use crate::passes::{Backward, BackwardError};
use crate::plan::{Lowering, Target, Variant};

/// Number of queries in one tile, when there are many tokens.
pub const QUERY_TILE: usize = 16;

/// How all kernels address the cache.
const CACHE: &str = wgsl!("lib/cache.wgsl");
/// Scores: scale, cap and ALiBi.
pub(super) const SCORE: &str = wgsl!("lib/score.wgsl");

/// The kernels; the first that fits is used.
const VARIANTS: &[Variant<Attention>] = &[
    split::VARIANT, // few tokens
    lanes::VARIANT, // software with subgroups
    tiles::VARIANT, // everything else
];

/// Inputs: q [T, H, d], k and v cache, positions \[T\], bases \[T\], tiles [n, 2]; outputs: y [T, H, d], and after a
/// rewrite the results of runs [T, splits, H, d + 2].
///
/// Token t sees the positions p ≤ positions\[t\] of its sequence, and with a window only the last `window` of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attention {
    /// Query heads H.
    pub heads: usize,
    /// Key-value heads K.
    pub kv_heads: usize,
    /// Head size d.
    pub head_dim: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// c · tanh(score / c) before the mask (Gemma 2).
    pub softcap: Option<f32>,
    /// Number of positions that a token sees, itself included.
    pub window: Option<usize>,
    /// Positions that one sequence can have.
    pub context: usize,
    /// ALiBi: a score is reduced by the slope of its head for every position between query and key. This factor
    /// multiplies the slopes.
    pub alibi: Option<f32>,
    /// Number of cache rows per sequence, where it is smaller than the context; see [`CacheRows`].
    pub ring: Option<usize>,
    /// Positions of a block of the cache, if it has blocks.
    pub block: Option<usize>,
    /// The cache's element format; set when the operation is recorded.
    pub element: CacheElement,
}

/// The sequences and positions of a step's tokens.
#[derive(Debug, Clone, Copy)]
pub struct Causality {
    /// Position of each token in its sequence \[T\].
    pub positions: Tensor,
    /// Number of each token's sequence, times the context \[T\]: its first row in a cache without rings and blocks. With
    /// blocks a table follows, as [`CacheRows`] says.
    pub bases: Tensor,
    /// First token and number of tokens of each tile [n, 2]; all tokens of a tile belong to one sequence. Unused tiles
    /// have 0 tokens.
    pub tiles: Tensor,
}

impl Graph {
    /// Attention of q [T, H, d] over cached keys and values.
    pub fn attention(&mut self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, over: Causality) -> Tensor {
        let shape = self.shape(q).to_vec();
        assert!(
            attention.head_dim.is_multiple_of(4),
            "attention: head_dim {} is not a multiple of 4",
            attention.head_dim
        );
        assert!(attention.alibi.is_none() || attention.softcap.is_none(), "attention: ALiBi with a cap");
        let attention = Attention {
            element: CacheElement::of(self.width(k), attention.kv_heads * attention.head_dim),
            ..attention
        };
        self.apply(attention, &[q, k, v, over.positions, over.bases, over.tiles], &shape)
    }
}

impl Attention {
    /// Sizes of the results of runs, if the kernel for this target divides the cached positions into runs.
    pub(crate) fn runs(&self, target: &Target<'_>) -> Option<[usize; 4]> {
        let splits = Variant::first(VARIANTS, self, target).is_some_and(|variant| variant.name == split::VARIANT.name);
        splits.then(|| Run::of(self, target.capabilities, target.tokens).results(self, target.tokens))
    }

    /// How a sequence's positions map to cache rows.
    pub fn rows(&self) -> CacheRows {
        CacheRows { context: self.context, ring: self.ring, block: self.block }
    }

    /// The same over a cache whose positions map to rows like this.
    pub fn over(&self, rows: CacheRows) -> Attention {
        Attention { context: rows.context, ring: rows.ring, block: rows.block, ..self.clone() }
    }

    /// The names that all kernels read, for a cache of `rows` rows and a step of `tokens` tokens with bases of `bases` words.
    pub(super) fn defines(&self, rows: usize, bases: usize, tokens: usize) -> Defines {
        let defines = self.score_defines(Defines::new());
        let defines = self.rows().defines(defines, bases, tokens);
        let defines = self.element.defines(defines, rows, self.kv_heads * self.head_dim);
        defines
            .set("H", self.heads)
            .set("K", self.kv_heads)
            .set("G", self.heads / self.kv_heads)
            .set("d", self.head_dim)
            .set("WINDOW", self.window.unwrap_or(0))
    }

    /// The names that `lib/score.wgsl` reads.
    pub(super) fn score_defines(&self, defines: Defines) -> Defines {
        defines
            .set("SCALE", self.scale)
            .set("SOFTCAP", self.softcap.is_some())
            .set("CAP", self.softcap.unwrap_or(1.0))
            .set("ALIBI", self.alibi.is_some())
            .set("ALIBI_FACTOR", self.alibi.unwrap_or(0.0))
            .set("ALIBI_POWER", (self.heads + 1).next_power_of_two() / 2)
    }

    /// ALiBi's slope of a head: the reduction of its scores per position of distance (Press et al., 2022).
    pub(crate) fn slope(&self, head: usize) -> f64 {
        let power = (self.heads + 1).next_power_of_two() / 2;
        let exponent = if head < power { 8.0 * (head + 1) as f64 } else { 4.0 * (2 * (head - power) + 1) as f64 };
        self.alibi.map_or(0.0, |factor| f64::from(factor) * (-exponent / power as f64).exp2())
    }

    /// Whether a subgroup of this size divides the heads and the tiles evenly.
    pub(super) fn divides_into(&self, lanes: usize) -> bool {
        self.head_dim.is_multiple_of(4 * lanes) && QUERY_TILE.is_multiple_of(lanes)
    }

    /// The largest number of keys that one tile of queries sees.
    fn keys(&self) -> usize {
        self.window.map_or(self.context, |window| self.context.min(window + QUERY_TILE))
    }

    /// The score of a raw product q·k in f32; `slope` is that of the head.
    #[inline(always)]
    pub(crate) fn fast_score(&self, raw: f32, slope: f32, distance: usize) -> f32 {
        match self.softcap {
            Some(cap) => cap * (raw * self.scale / cap).tanh(),
            None => raw * self.scale - slope * distance as f32,
        }
    }

    /// The score of a raw product q·k, and the derivative of the score by it.
    pub(super) fn score(&self, raw: f64, head: usize, distance: usize) -> (f64, f64) {
        let scale = f64::from(self.scale);
        match self.softcap.map(f64::from) {
            None => (raw * scale - self.slope(head) * distance as f64, scale),
            Some(cap) => {
                let t = (raw * scale / cap).tanh();
                (cap * t, scale * (1.0 - t * t))
            }
        }
    }
}

impl Op for Attention {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "attention"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        to.emit_first(VARIANTS, self)
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let Some(dy) = to.gradient(0) else { return Ok(()) };
        let [q, k, v] = [to.input(0), to.input(1), to.input(2)];
        if self.element != CacheElement::F32 || self.ring.or(self.block).is_some() {
            return Err(BackwardError("attention over a cache that is not in f32, a ring, or in blocks"));
        }
        let over = Causality { positions: to.input(3), bases: to.input(4), tiles: to.input(5) };
        let y = to.output(0);
        let gradients = to.graph().attention_backward(self.clone(), [q, k, v, y, dy], over);
        for (gradient, input) in gradients.into_iter().zip([q, k, v]) {
            to.pass(gradient, input);
        }
        Ok(())
    }

    fn work(&self, inputs: &[&[usize]], _outputs: &[&[usize]]) -> u64 {
        // An upper bound: every token attends to all tokens of the step.
        2 * elements(inputs[0]) * inputs[0][0] as u64
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        let (q, positions, bases) = (step.inputs[0].f32(), step.inputs[3].u32(), step.inputs[4].u32());
        let (keys, values) = (step.inputs[1].values, step.inputs[2].values);
        let y = Shared::new(step.outputs[0].f32_mut());
        let together = Heads::together(self, positions.len(), step.cpu.threads());
        let (bases, table) = CacheRows::split_table(bases, positions.len());
        let heads = Heads { op: self, q, keys, values, positions, bases, table, y, together };
        let level = step.cpu.level();
        let longest = positions.iter().max().map_or(1, |&position| position as usize + 1);
        let seen = self.window.map_or(longest, |window| longest.min(window));
        let least = (1 << 14) / (seen * self.head_dim * together);
        step.cpu.split(heads.parts(), least, |range| attend(level, &heads, range));
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let d = self.head_dim;
        let group = self.heads / self.kv_heads;
        let [keys, values] = [1, 2].map(|i: usize| self.element.read(inputs[i].values, self.kv_heads * d));
        let rows = self.rows();
        let (bases, table) = CacheRows::split_table(inputs[4].u32(), inputs[0].shape[0]);
        for t in 0..inputs[0].shape[0] {
            let position = inputs[3].u32()[t] as usize;
            let base = bases[t] as usize;
            let begin = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
            for head in 0..self.heads {
                let q = &inputs[0].f32()[(t * self.heads + head) * d..][..d];
                let row = |p: usize| (rows.row(table, base, p) * self.kv_heads + head / group) * d;
                let dot =
                    |p: usize| q.iter().zip(&keys[row(p)..]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
                let scores: Vec<f64> = (begin..=position).map(|p| self.score(dot(p), head, position - p).0).collect();
                let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - peak).exp()).collect();
                let total: f64 = weights.iter().sum();
                let y = &mut outputs[0].f32_mut()[(t * self.heads + head) * d..][..d];
                for (i, y) in y.iter_mut().enumerate() {
                    let sum: f64 =
                        weights.iter().enumerate().map(|(j, w)| w * f64::from(values[row(begin + j) + i])).sum();
                    *y = (sum / total) as f32;
                }
            }
        }
    }
}
