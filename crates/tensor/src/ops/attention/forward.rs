//! Causal attention over the cache, with grouped queries, an optional sliding window and logit soft-capping.
//!
//! For few tokens, the cached positions are split into runs that different workgroups process (flash decoding, Dao et
//! al. 2023), and a second dispatch merges them. For many tokens, each tile of queries loops over tiles of keys
//! (FlashAttention, Dao et al. 2022).

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::cache::{CacheElement, CacheRows};
use crate::graph::{Graph, Op, Operand, Tensor, Values, elements};
use crate::passes::{Backward, BackwardError};
use crate::plan::{Extent, KernelText, Lowering, grid};

/// Steps with at most this many tokens split the cached positions over workgroups instead of the tokens.
pub const FEW_TOKENS: usize = 8;

/// Number of queries in one tile, when there are many tokens.
pub const QUERY_TILE: usize = 16;

const CACHE: &str = wgsl!("lib/cache.wgsl");
pub(crate) const SCORE: &str = wgsl!("lib/score.wgsl");
pub(crate) const RUN: &str = wgsl!("lib/attention_run.wgsl");

/// Number of cached positions in one run, when there are few tokens.
pub(crate) const SPLIT: usize = 256;

/// Inputs: q [T, H, d], k and v cache, positions \[T\], bases \[T\], tiles [n, 2]; output [T, H, d].
///
/// Token t sees the cache rows bases\[t\] + p for p ≤ positions\[t\], and with a window only the last `window` of them.
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
    /// The cache's element format; set when the operation is recorded.
    pub element: CacheElement,
}

/// The sequences and positions of a step's tokens.
#[derive(Debug, Clone, Copy)]
pub struct Causality {
    /// Position of each token in its sequence \[T\].
    pub positions: Tensor,
    /// Cache row of position 0 of each token's sequence \[T\].
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
    /// How a sequence's positions map to cache rows.
    pub fn rows(&self) -> CacheRows {
        CacheRows { context: self.context, ring: self.ring }
    }

    /// The names that all kernels read, for a cache of `rows` rows.
    pub(crate) fn defines(&self, rows: usize) -> Defines {
        let defines = self.score_defines(Defines::new());
        let defines = self.element.defines(self.rows().defines(defines), rows, self.kv_heads * self.head_dim);
        defines
            .set("H", self.heads)
            .set("K", self.kv_heads)
            .set("G", self.heads / self.kv_heads)
            .set("d", self.head_dim)
            .set("WINDOW", self.window.unwrap_or(0))
    }

    /// The names that `lib/score.wgsl` reads.
    pub(crate) fn score_defines(&self, defines: Defines) -> Defines {
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

    fn dispatch_split(&self, to: &mut Lowering<'_>, tokens: usize) -> Result<(), GpuError> {
        let (h, k, d) = (self.heads, self.kv_heads, self.head_dim);
        let max_splits = self.context.div_ceil(SPLIT);
        let partial = to.gpu().allocate("attention runs", (tokens * max_splits * h * (d + 2) * 4) as u64)?.whole();
        let threads = if to.capabilities().software { to.capabilities().subgroup_size.0.max(4) as usize } else { 64 };
        let defines = self
            .defines(to.input_shape(1)[0])
            .set("SPLIT", SPLIT)
            .set("MAX_SPLITS", max_splits)
            .set("G_SPLIT", h / k * SPLIT);
        let defines = grid::reduction(to, defines, threads);
        let parts = [wgsl!("lib/reduce.wgsl"), CACHE, SCORE, RUN, wgsl!("attention/split.wgsl")];
        let bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.input(4), partial.clone()];
        let grid = [Extent::Fixed(k as u32), Extent::CachedRuns(SPLIT as u32), Extent::Fixed(tokens as u32)];
        to.emit(
            KernelText {
                name: "attention_split",
                parts: &parts,
                defines: defines.clone(),
                turns: self.run_turns(threads),
            },
            &[bindings],
            grid,
        )?;
        let bindings = vec![partial, to.input(3), to.output(0)];
        merge(to, defines, bindings, self, tokens, threads)
    }

    fn dispatch_tiles(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let d4 = self.head_dim / 4;
        let room = to.capabilities().max_workgroup_bytes as usize - 256;
        // Workgroup memory holds the queries too only if heads are narrow enough; the keys and values are always there.
        let needs = |queries: usize, keys: usize| (queries + keys) * self.head_dim * 4 + QUERY_TILE * keys * 4;
        let shared = needs(QUERY_TILE, 4) <= room;
        let mut keys = 32;
        while keys > 4 && needs(if shared { QUERY_TILE } else { 0 }, keys) > room {
            keys /= 2;
        }
        let threads = 128;
        let defines = self
            .defines(to.input_shape(1)[0])
            .set("THREADS", threads)
            .set("TQ", QUERY_TILE)
            .set("TK", keys)
            .set("D4", d4)
            .set("SHARED_QUERIES", shared)
            .set("TQ_D4", QUERY_TILE * d4)
            .set("TK_D4", keys * d4)
            .set("TQ_TK", QUERY_TILE * keys)
            .set("OUTPUTS", (QUERY_TILE * d4).div_ceil(threads));
        let parts = [CACHE, SCORE, wgsl!("attention/tile.wgsl")];
        let bindings = (0..6).map(|i| to.input(i)).chain([to.output(0)]).collect();
        let tiles = to.input_shape(5)[0];
        let grid = [Extent::Fixed(self.heads as u32), Extent::Fixed(tiles as u32), Extent::Fixed(1)];
        let walks = |len: usize| grid::walk(len, threads);
        let outputs = walks(QUERY_TILE * d4);
        let each = 1 + 2 * walks(keys * d4) + walks(QUERY_TILE * keys) + 2 * (keys as u64 + 1) + outputs;
        let turns = 1 + 2 * outputs + self.keys().div_ceil(keys) as u64 * each;
        to.emit(KernelText { name: "attention_tile", parts: &parts, defines, turns }, &[bindings], grid)
    }

    /// The largest number of keys that one tile of queries sees.
    fn keys(&self) -> usize {
        self.window.map_or(self.context, |window| self.context.min(window + QUERY_TILE))
    }

    /// Loop iterations of `lib/attention_run.wgsl` for one run of positions.
    pub(crate) fn run_turns(&self, threads: usize) -> u64 {
        let (d4, group, run) = (self.head_dim / 4, self.heads / self.kv_heads, grid::walk(SPLIT, threads));
        run * (2 + d4 as u64)
            + 1
            + group as u64 * (1 + 2 * run + 2 * grid::REDUCTION)
            + grid::walk(d4, threads) * (2 + SPLIT as u64)
    }

    /// Number of invocations of the one-subgroup kernel, on software devices with fitting sizes; `None` elsewhere.
    pub(crate) fn lanes(&self, to: &Lowering<'_>) -> Option<usize> {
        let shape = to.tuning().rows_shape(to.capabilities());
        (shape.shuffle && self.head_dim.is_multiple_of(4 * shape.lanes) && QUERY_TILE.is_multiple_of(shape.lanes))
            .then_some(shape.lanes)
    }

    fn dispatch_lanes(&self, to: &mut Lowering<'_>, lanes: usize) -> Result<(), GpuError> {
        let d4 = self.head_dim / 4;
        let defines =
            self.defines(to.input_shape(1)[0]).set("LANES", lanes).set("TQ", QUERY_TILE).set("HELD", d4 / lanes);
        let defines = defines.set("QUADS", lanes == 4);
        let parts = [CACHE, SCORE, wgsl!("attention/lanes.wgsl")];
        let bindings = (0..6).map(|i| to.input(i)).chain([to.output(0)]).collect();
        let tiles = to.input_shape(5)[0] * QUERY_TILE / lanes;
        let grid = [Extent::Fixed(self.heads as u32), Extent::Fixed(tiles as u32), Extent::Fixed(1)];
        to.emit(
            KernelText { name: "attention_lanes", parts: &parts, defines, turns: self.keys().div_ceil(4) as u64 + 1 },
            &[bindings],
            grid,
        )
    }

    /// The score of a raw product q·k, and the derivative of the score by it.
    pub(crate) fn score(&self, raw: f64, head: usize, distance: usize) -> (f64, f64) {
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

/// Emits the kernel that merges the runs of each token and head.
pub(crate) fn merge(
    to: &mut Lowering<'_>,
    defines: Defines,
    bindings: Vec<bayan_gpu::Slice>,
    attention: &Attention,
    tokens: usize,
    threads: usize,
) -> Result<(), GpuError> {
    let splits = attention.context.div_ceil(SPLIT) as u64;
    let turns = 2 * (splits + 1) + grid::walk(attention.head_dim, threads) * (2 + splits);
    let text = KernelText { name: "attention_merge", parts: &[wgsl!("attention/merge.wgsl")], defines, turns };
    to.emit(text, &[bindings], [Extent::Fixed(attention.heads as u32), Extent::Fixed(tokens as u32), Extent::Fixed(1)])
}

impl Op for Attention {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "attention"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let tokens = to.input_shape(0)[0];
        match self.lanes(to) {
            _ if tokens <= FEW_TOKENS => self.dispatch_split(to, tokens),
            Some(lanes) => self.dispatch_lanes(to, lanes),
            None => self.dispatch_tiles(to),
        }
    }

    fn backward(&self, to: &mut Backward<'_>) -> Result<(), BackwardError> {
        let Some(dy) = to.gradient(0) else { return Ok(()) };
        let [q, k, v] = [to.input(0), to.input(1), to.input(2)];
        if self.element != CacheElement::F32 || self.ring.is_some() {
            return Err(BackwardError("attention over a cache that is not in f32, or a ring"));
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

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let d = self.head_dim;
        let group = self.heads / self.kv_heads;
        let [keys, values] = [1, 2].map(|i: usize| self.element.read(inputs[i].values, self.kv_heads * d));
        let rows = self.rows();
        for t in 0..inputs[0].shape[0] {
            let position = inputs[3].u32()[t] as usize;
            let base = inputs[4].u32()[t] as usize;
            let begin = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
            for head in 0..self.heads {
                let q = &inputs[0].f32()[(t * self.heads + head) * d..][..d];
                let row = |p: usize| (rows.row(base, p) * self.kv_heads + head / group) * d;
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
