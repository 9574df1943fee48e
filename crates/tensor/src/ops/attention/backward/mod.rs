//! The gradients of [`super::Attention`] over the keys and values of the same step, flash style (Dao et al., 2022): the
//! attention weights are recomputed tile by tile, so that nothing of size tokens x tokens is stored.
//!
//! Three passes without atomics, so that results repeat bit by bit: a log-sum-exp for each query; dq by tiles of
//! queries; dk and dv by tiles of keys, each summed over the queries that see the keys and over the heads of the group.
//! Keys that were cached before the step are constants.

mod lanes;
mod tiles;

use bayan_gpu::shader::Defines;
use bayan_gpu::{GpuError, Slice};

use super::forward::{Attention, Causality, QUERY_TILE};
use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values, elements};
use crate::plan::{Lowering, Variant};

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

/// The kernels; the first that fits is used.
const VARIANTS: &[Variant<AttentionBackward>] = &[
    lanes::VARIANT, // software with subgroups
    tiles::VARIANT, // everything else
];

/// The passes, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// The log-sum-exp of each query, and Σ dy∘y.
    Statistics,
    /// dq.
    Queries,
    /// dk and dv.
    Keys,
}

impl Pass {
    const ALL: [Pass; 3] = [Pass::Statistics, Pass::Queries, Pass::Keys];

    /// The bindings of its kernels, which are the same in every variant.
    fn bindings(self, to: &Lowering<'_>) -> Vec<Slice> {
        let [q, k, v, y, dy, positions, bases, tiles] = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| to.input(i));
        let [dq, statistics, dk, dv] = [0, 1, 2, 3].map(|i| to.output(i));
        match self {
            Pass::Statistics => vec![q, k, dy, y, tiles, positions, bases, statistics],
            Pass::Queries => vec![q, k, dy, v, tiles, statistics, dq],
            Pass::Keys => vec![q, k, dy, v, tiles, statistics, dk, dv],
        }
    }
}

impl AttentionBackward {
    /// The largest number of keys that the queries of one workgroup see.
    fn keys(&self, to: &Lowering<'_>) -> usize {
        let rows = to.input_shape(1)[0];
        self.0.window.map_or(rows, |window| rows.min(window + QUERY_TILE))
    }

    /// Heads over which a pass is spread: the passes over queries take each query head, that over keys each key head.
    fn heads(&self, pass: Pass) -> usize {
        if pass == Pass::Keys { self.0.kv_heads } else { self.0.heads }
    }

    /// The names that all passes read.
    fn defines(&self, pass: Pass) -> Defines {
        let defines = self.0.score_defines(Defines::new()).set("H", self.0.heads).set("K", self.0.kv_heads);
        defines
            .set("d", self.0.head_dim)
            .set("WINDOW", self.0.window.unwrap_or(0))
            .set("STATISTICS", pass == Pass::Statistics)
    }
}

impl Op for AttentionBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "attention_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        to.emit_first(VARIANTS, self)
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
