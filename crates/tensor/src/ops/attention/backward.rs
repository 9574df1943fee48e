//! The gradients of [`super::Attention`] over the keys and values of the same step, flash style (Dao et al., 2022): the
//! attention weights are recomputed tile by tile, so that nothing of size tokens x tokens is stored.
//!
//! Three passes without atomics, so that results repeat bit by bit: a log-sum-exp for each query; dq by tiles of
//! queries; dk and dv by tiles of keys, each summed over the queries that see the keys and over the heads of the group.
//! Keys that were cached before the step are constants.

use bayan_gpu::shader::Defines;
use bayan_gpu::{GpuError, Slice};

use super::forward::{Attention, Causality, QUERY_TILE, SCORE};
use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values, elements};
use crate::plan::{Extent, KernelText, Lowering, grid};

/// Inputs: q [T, H, d], k and v cache [rows, K d] f32, y and dy [T, H, d], positions \[T\], bases \[T\], tiles [n, 2];
/// outputs: dq [T, H, d], statistics [T, H, 4] (log-sum-exp, Σ dy∘y, base and position), and dk and dv [rows, K d], of
/// which only the step's rows are written.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionBackward(pub Attention);

impl Graph {
    /// The gradients of q, and of the cached keys and values.
    pub fn attention_backward(
        &mut self,
        attention: Attention,
        [q, k, v, y, dy]: [Tensor; 5],
        over: Causality,
    ) -> [Tensor; 3] {
        let (q_shape, cache_shape) = (self.shape(q).to_vec(), self.shape(k).to_vec());
        let dq = self.tensor(&q_shape, Dtype::F32);
        let statistics = self.tensor(&[q_shape[0], q_shape[1], 4], Dtype::F32);
        let (dk, dv) = (self.tensor(&cache_shape, Dtype::F32), self.tensor(&cache_shape, Dtype::F32));
        self.record(
            AttentionBackward(attention),
            &[q, k, v, y, dy, over.positions, over.bases, over.tiles],
            &[dq, statistics, dk, dv],
        );
        [dq, dk, dv]
    }
}

impl AttentionBackward {
    fn emit(
        &self,
        to: &mut Lowering<'_>,
        name: &str,
        text: &str,
        bindings: Vec<Slice>,
        heads: usize,
    ) -> Result<(), GpuError> {
        let d4 = self.0.head_dim / 4;
        // One invocation owns one vector of d in every TOGETHER-th row of the tile.
        let mut together = 1;
        // Every barrier of a software device costs time per invocation: there, as few invocations as a tile needs.
        let most = if to.capabilities().software { QUERY_TILE } else { 128 };
        while together * 2 * d4 <= most && together < QUERY_TILE {
            together *= 2;
        }
        let threads = (together * d4).max(QUERY_TILE);
        let defines = self
            .defines()
            .set("TILE", QUERY_TILE)
            .set("TILE_9", QUERY_TILE * 9)
            .set("TILE_TILE", QUERY_TILE * QUERY_TILE)
            .set("PAIRS", (QUERY_TILE * QUERY_TILE).div_ceil(threads))
            .set("TOGETHER", together)
            .set("EACH", QUERY_TILE / together)
            .set("STATISTICS", name == "attention_backward_statistics")
            .set("THREADS", threads);
        let tiles = to.input_shape(7)[0];
        let parts = [SCORE, wgsl!("lib/attention_backward.wgsl"), text];
        let grid = [Extent::Fixed(heads as u32), Extent::Fixed(tiles as u32), Extent::Fixed(1)];
        // Each tile of keys, or of queries, is processed once: its products cover d in parts of 8 vectors.
        let products = 1 + d4.div_ceil(8) as u64 * (10 + grid::walk(QUERY_TILE * 8, threads));
        let met = match name {
            "attention_backward_keys" => 1 + tiles * (2 + self.0.heads / self.0.kv_heads * (2 + QUERY_TILE)),
            _ => self.keys(to).div_ceil(QUERY_TILE) * (3 + 2 * QUERY_TILE) + d4 + 2,
        };
        let times = match name {
            "attention_backward_keys" => tiles * (self.0.heads / self.0.kv_heads),
            _ => self.keys(to).div_ceil(QUERY_TILE),
        };
        let turns = met as u64 + times as u64 * products;
        to.emit(KernelText { name, parts: &parts, defines, turns }, &[bindings], grid)
    }

    /// The largest number of keys that the queries of one workgroup see.
    fn keys(&self, to: &Lowering<'_>) -> usize {
        let rows = to.input_shape(1)[0];
        self.0.window.map_or(rows, |window| rows.min(window + QUERY_TILE))
    }

    /// The names that all passes read.
    fn defines(&self) -> Defines {
        let defines = self.0.score_defines(Defines::new()).set("H", self.0.heads).set("K", self.0.kv_heads);
        defines.set("d", self.0.head_dim).set("WINDOW", self.0.window.unwrap_or(0))
    }

    /// Emits the passes of which one subgroup handles as many queries or keys as it has invocations.
    fn emit_lanes(
        &self,
        to: &mut Lowering<'_>,
        lanes: usize,
        name: &str,
        text: &str,
        bindings: Vec<Slice>,
        heads: usize,
    ) -> Result<(), GpuError> {
        let d4 = self.0.head_dim / 4;
        let statistics = name == "attention_backward_lanes_statistics";
        let defines = self
            .defines()
            .set("LANES", lanes)
            .set("TQ", QUERY_TILE)
            .set("D4", d4)
            .set("HELD", d4 / lanes)
            .set("STATISTICS", statistics);
        let tiles = to.input_shape(7)[0] * QUERY_TILE / lanes;
        let parts = [SCORE, wgsl!("lib/attention_backward_lanes.wgsl"), text];
        let grid = [Extent::Fixed(heads as u32), Extent::Fixed(tiles as u32), Extent::Fixed(1)];
        let turns = match name {
            "attention_backward_lanes_keys" => {
                1 + to.input_shape(7)[0] * (2 + QUERY_TILE * (2 + self.0.heads / self.0.kv_heads))
            }
            _ => self.keys(to) + 1,
        };
        to.emit(KernelText { name, parts: &parts, defines, turns: turns as u64 }, &[bindings], grid)
    }

    fn dispatch_lanes(&self, to: &mut Lowering<'_>, lanes: usize) -> Result<(), GpuError> {
        let input = |number: usize| to.input(number);
        let (q, k, v, y, dy, positions, bases, tiles) =
            (input(0), input(1), input(2), input(3), input(4), input(5), input(6), input(7));
        let (dq, statistics, dk, dv) = (to.output(0), to.output(1), to.output(2), to.output(3));
        let bindings = vec![q.clone(), k.clone(), dy.clone(), y, tiles.clone(), positions, bases, statistics.clone()];
        let text = wgsl!("attention/backward_lanes_statistics.wgsl");
        self.emit_lanes(to, lanes, "attention_backward_lanes_statistics", text, bindings, self.0.heads)?;
        let bindings = vec![q.clone(), k.clone(), dy.clone(), v.clone(), tiles.clone(), statistics.clone(), dq];
        let text = wgsl!("attention/backward_lanes_queries.wgsl");
        self.emit_lanes(to, lanes, "attention_backward_lanes_queries", text, bindings, self.0.heads)?;
        let bindings = vec![q, k, dy, v, tiles, statistics, dk, dv];
        let text = wgsl!("attention/backward_lanes_keys.wgsl");
        self.emit_lanes(to, lanes, "attention_backward_lanes_keys", text, bindings, self.0.kv_heads)
    }
}

impl Op for AttentionBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "attention_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        if let Some(lanes) = self.0.lanes(to) {
            return self.dispatch_lanes(to, lanes);
        }
        let (q, k, v, y, dy) = (to.input(0), to.input(1), to.input(2), to.input(3), to.input(4));
        let (positions, bases, tiles) = (to.input(5), to.input(6), to.input(7));
        let (dq, statistics, dk, dv) = (to.output(0), to.output(1), to.output(2), to.output(3));
        let bindings = vec![q.clone(), k.clone(), dy.clone(), y, tiles.clone(), positions, bases, statistics.clone()];
        let text = wgsl!("attention/backward_statistics.wgsl");
        self.emit(to, "attention_backward_statistics", text, bindings, self.0.heads)?;
        let bindings = vec![q.clone(), k.clone(), dy.clone(), v.clone(), tiles.clone(), statistics.clone(), dq];
        let text = wgsl!("attention/backward_queries.wgsl");
        self.emit(to, "attention_backward_queries", text, bindings, self.0.heads)?;
        let bindings = vec![q, k, dy, v, tiles, statistics, dk, dv];
        let text = wgsl!("attention/backward_keys.wgsl");
        self.emit(to, "attention_backward_keys", text, bindings, self.0.kv_heads)
    }

    fn work(&self, inputs: &[&[usize]], _outputs: &[&[usize]]) -> u64 {
        7 * elements(inputs[0]) * inputs[0][0] as u64
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let Attention { heads, kv_heads, head_dim: d, window, .. } = self.0;
        let (q, k, v, dy) = (inputs[0].f32(), inputs[1].f32(), inputs[2].f32(), inputs[4].f32());
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let (mut dk, mut dv) = (vec![0.0f64; k.len()], vec![0.0f64; v.len()]);
        for t in 0..inputs[0].shape[0] {
            let (position, base) = (inputs[5].u32()[t] as usize, inputs[6].u32()[t] as usize);
            let begin = window.map_or(0, |window| (position + 1).saturating_sub(window));
            for head in 0..heads {
                let at = (t * heads + head) * d;
                let row = |p: usize| ((base + p) * kv_heads + head / (heads / kv_heads)) * d;
                let (q, dy) = (&q[at..at + d], &dy[at..at + d]);
                let scores: Vec<(f64, f64)> =
                    (begin..=position).map(|p| self.0.score(dot(q, &k[row(p)..][..d]), head, position - p)).collect();
                let peak = scores.iter().map(|s| s.0).fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s.0 - peak).exp()).sum();
                let weights: Vec<f64> = scores.iter().map(|s| (s.0 - peak).exp() / total).collect();
                let pulls: Vec<f64> = (begin..=position).map(|p| dot(dy, &v[row(p)..][..d])).collect();
                let mean: f64 = weights.iter().zip(&pulls).map(|(w, p)| w * p).sum();
                let mut dq = vec![0.0f64; d];
                for (j, p) in (begin..=position).enumerate() {
                    let slope = weights[j] * (pulls[j] - mean) * scores[j].1;
                    for i in 0..d {
                        dq[i] += slope * f64::from(k[row(p) + i]);
                        dk[row(p) + i] += slope * f64::from(q[i]);
                        dv[row(p) + i] += weights[j] * f64::from(dy[i]);
                    }
                }
                outputs[0].f32_mut()[at..at + d].iter_mut().zip(dq).for_each(|(y, v)| *y = v as f32);
            }
        }
        for (output, sums) in outputs[2..].iter_mut().zip([dk, dv]) {
            output.f32_mut().iter_mut().zip(sums).for_each(|(y, v)| *y = v as f32);
        }
    }
}
