//! Cross-entropy over the vocabulary in chunks. The first sweep adds the logits of one chunk at a time to a running
//! maximum and sum; the second sweep computes them again and replaces them by their gradients. Nothing of size tokens x
//! vocabulary is stored when the vocabulary is large.
//!
//! A chunk is a view of some of the output head's rows, so that both sweeps use the ordinary linear kernels in any
//! weight format.

use std::sync::Arc;

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use crate::graph::{Dtype, Graph, Matrix, Op, Operand, State, Tensor, Values};
use crate::ops::elementwise::SoftCap;
use crate::ops::linear::Linear;
use crate::plan::{KernelText, Lowering, grid};

/// The target of a row that does not contribute to the loss.
pub const IGNORED: u32 = u32::MAX;

/// Adds a chunk of logits to the statistics of each row. Inputs: logits [R, C], targets \[R\], and the statistics
/// unless this is the first chunk; output: statistics [R, 4]: maximum, Σ exp(logit − maximum), and the target's logit.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossEntropyScan {
    /// Vocabulary index of the chunk's first column.
    pub offset: usize,
    /// Whether this is the first chunk, which initialises the statistics.
    pub first: bool,
}

/// Replaces a chunk of logits by their gradients in place: weights\[r\] (softmax − 1 at the target). Inputs: logits [R,
/// C], targets \[R\], statistics [R, 4], weights \[R\]; output: logits. With a soft-cap, the gradient is that of the
/// uncapped logits.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossEntropyBackward {
    /// Vocabulary index of the chunk's first column.
    pub offset: usize,
    /// The soft-cap of the logits, if there is one.
    pub softcap: Option<f32>,
}

/// A recorded first sweep: the output head and its input rows, in chunks of the vocabulary.
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    hidden: Tensor,
    targets: Tensor,
    chunks: Vec<(usize, Arc<Matrix>)>,
    softcap: Option<f32>,
    logits: Option<Tensor>,
    /// Statistics of each row [R, 4]: maximum, sum, logit of the target.
    pub statistics: Tensor,
}

impl CrossEntropy {
    /// The input rows [R, D] of the output head.
    pub fn hidden(&self) -> Tensor {
        self.hidden
    }
}

impl Graph {
    /// Records the first sweep for `logits` [R, V], which must be recorded last: their linear node (and soft-cap) is
    /// removed from the list and recorded chunk by chunk, with at most `budget` logits at a time. `targets` \[R\] may
    /// contain [`IGNORED`]. `None` when the logits are not the direct output of a linear layer without a bias.
    pub fn cross_entropy(&mut self, logits: Tensor, targets: Tensor, budget: usize) -> Option<CrossEntropy> {
        let last = self.nodes().last()?;
        let softcap = last.op.as_any().downcast_ref::<SoftCap>().filter(|_| last.outputs == [logits]).map(|op| op.cap);
        let (node, expected) = match softcap {
            Some(_) => (self.nodes().iter().rev().nth(1)?.clone(), last.inputs[0]),
            None => (last.clone(), logits),
        };
        let linear = node.op.as_any().downcast_ref::<Linear>()?;
        if node.outputs != [expected] || linear.residual || linear.bias {
            return None;
        }
        let (rows, vocabulary) = (self.rows(logits), self.width(logits));
        self.pop_node();
        if softcap.is_some() {
            self.pop_node();
        }
        let hidden = node.inputs[0];
        let wide =
            (budget / rows.max(1)).max(crate::graph::SHARD_ROWS) / crate::graph::SHARD_ROWS * crate::graph::SHARD_ROWS;
        let starts = (0..vocabulary).step_by(wide);
        let chunks: Vec<_> = starts
            .map(|start| (start, Matrix::rows_view(&linear.weight, start..(start + wide).min(vocabulary))))
            .collect();
        let statistics = self.tensor(&[rows, 4], Dtype::F32);
        let mut sweep = CrossEntropy { hidden, targets, chunks, softcap, logits: None, statistics };
        for index in 0..sweep.chunks.len() {
            let logits = self.chunk_logits(&sweep, index);
            let inputs = [logits, targets, statistics];
            self.record(
                CrossEntropyScan { offset: sweep.chunks[index].0, first: index == 0 },
                &inputs[..2 + usize::from(index > 0)],
                &[statistics],
            );
            if sweep.chunks.len() == 1 {
                sweep.logits = Some(logits);
            }
        }
        Some(sweep)
    }

    fn chunk_logits(&mut self, sweep: &CrossEntropy, index: usize) -> Tensor {
        let logits = self.linear(sweep.hidden, &sweep.chunks[index].1, None);
        sweep.softcap.map_or(logits, |cap| self.softcap(logits, cap))
    }

    /// Records the second sweep: the gradient of the head's input, with the weights \[R\] of the rows. Where the head
    /// is one of the `parameters` (parameter, its gradient's state), its gradient is added chunk by chunk.
    pub fn cross_entropy_backward(
        &mut self,
        sweep: &CrossEntropy,
        weights: Tensor,
        parameters: &[(Arc<State>, Arc<State>)],
    ) -> Tensor {
        let shape = self.shape(sweep.hidden).to_vec();
        let gradient = self.tensor(&shape, Dtype::F32);
        for (index, (offset, weight)) in sweep.chunks.iter().enumerate() {
            let logits = match sweep.logits {
                Some(logits) => logits,
                None => self.chunk_logits(sweep, index),
            };
            let op = CrossEntropyBackward { offset: *offset, softcap: sweep.softcap };
            self.record(op, &[logits, sweep.targets, sweep.statistics, weights], &[logits]);
            self.linear_backward(logits, weight, gradient, index > 0);
            let Some(trained) = weight.trained() else { continue };
            if let Some((_, into)) = parameters.iter().find(|(state, _)| Arc::ptr_eq(state, &trained.state)) {
                let into = self.state(into);
                self.weight_gradient(logits, sweep.hidden, into, trained.first_row);
            }
        }
        gradient
    }
}

impl Op for CrossEntropyScan {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "cross_entropy_scan"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let (rows, width) = (to.input_shape(0)[0], to.input_shape(0)[1]);
        let threads = grid::row_threads(to, width.div_ceil(4));
        let defines = grid::reduction(to, Defines::new().set("C", width).set("OFFSET", self.offset), threads);
        let parts = [wgsl!("lib/reduce.wgsl"), wgsl!("training/cross_entropy_scan.wgsl")];
        let bindings = vec![to.input(0), to.input(1), to.output(0)];
        // The buffer holds the statistics of the previous columns, so the scan can be split over dispatches anywhere.
        let piece = to.piece(2 * grid::REDUCTION + 2, 2, threads);
        for start in (0..width).step_by(piece) {
            let end = start.saturating_add(piece).min(width);
            let first = self.first && start == 0;
            let defines = defines.clone().set("FIRST", first).set("BEGIN", start).set("END", end);
            let turns = 2 * grid::walk(end - start, threads) + 2 * grid::REDUCTION;
            let text = KernelText { name: "cross_entropy_scan", parts: &parts, defines, turns };
            to.emit(text, std::slice::from_ref(&bindings), grid::rows_grid(rows))?;
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let statistics = outputs[0].f32_mut().chunks_exact_mut(4);
        for ((logits, &target), known) in inputs[0].rows().zip(inputs[1].u32()).zip(statistics) {
            let (old, sum) =
                if self.first { (f64::NEG_INFINITY, 0.0) } else { (f64::from(known[0]), f64::from(known[1])) };
            let peak = logits.iter().map(|&v| f64::from(v)).fold(old, f64::max);
            let here: f64 = logits.iter().map(|&v| (f64::from(v) - peak).exp()).sum();
            let chosen = (target as usize).checked_sub(self.offset).and_then(|i| logits.get(i)).copied();
            known[0] = peak as f32;
            known[1] = (sum * (old - peak).exp() + here) as f32;
            known[2] = chosen.unwrap_or(if self.first { 0.0 } else { known[2] });
            known[3] = 0.0;
        }
    }
}

impl Op for CrossEntropyBackward {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "cross_entropy_backward"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let (rows, width) = (to.input_shape(0)[0], to.input_shape(0)[1]);
        let threads = grid::row_threads(to, width);
        let defines = Defines::new().set("C", width).set("OFFSET", self.offset).set("THREADS", threads);
        let defines = defines.set("SOFTCAP", self.softcap.is_some()).set("CAP", self.softcap.unwrap_or(1.0));
        let parts = [wgsl!("training/cross_entropy_backward.wgsl")];
        let bindings = vec![to.output(0), to.input(1), to.input(2), to.input(3)];
        to.emit(
            KernelText { name: "cross_entropy_backward", parts: &parts, defines, turns: grid::walk(width, threads) },
            &[bindings],
            grid::rows_grid(rows),
        )
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let width = inputs[0].width();
        let rows = outputs[0].f32_mut().chunks_exact_mut(width);
        let about = inputs[1].u32().iter().zip(inputs[2].rows()).zip(inputs[3].f32());
        for (logits, ((&target, known), &weight)) in rows.zip(about) {
            for (i, v) in logits.iter_mut().enumerate() {
                let probability = (f64::from(*v) - f64::from(known[0])).exp() / f64::from(known[1]);
                let hit = if target as usize == self.offset + i { 1.0 } else { 0.0 };
                let slope = self.softcap.map_or(1.0, |cap| 1.0 - (f64::from(*v) / f64::from(cap)).powi(2));
                *v = if target == IGNORED { 0.0 } else { (f64::from(weight) * (probability - hit) * slope) as f32 };
            }
        }
    }
}
