//! Log-probabilities of tokens: what the host needs of each row of logits, so that it need not read the row.
//!
//! A log-probability is a logit minus the row's largest logit minus the logarithm of Σ exp(logit − largest). The device
//! gives logits and sum; the host takes the logarithm in f64, so that no bit is lost beside a large logit. Each row is
//! reduced by itself in a fixed order, so that its numbers do not depend on the other rows.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::sample::{BEST_OF, FLOAT_ORDER, SHORTEST_CHUNK};
use crate::cpu::{CpuStep, exp, lane_sum};
use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values};
use crate::plan::{Extent, KernelText, Lowering, grid};

/// The most of the most likely tokens that a row gives.
pub const MOST_LIKELY: usize = 20;

/// Number of values of a row: the largest logit, Σ exp(logit − largest), the chosen token's logit, and the largest
/// logits in descending order.
pub const LOG_PROB_VALUES: usize = 3 + MOST_LIKELY;

/// Most chunks on hardware: what they offer is in workgroup memory.
const MOST_CHUNKS: usize = 1024;
/// Logits of a chunk on software devices.
const SOFTWARE_CHUNK: usize = 2048;

/// Inputs: logits [R, V], chosen tokens \[R\], the number of most likely tokens wanted \[R\], at most [`MOST_LIKELY`];
/// outputs: values [R, [`LOG_PROB_VALUES`]], ids of the most likely tokens [R, [`MOST_LIKELY`]], and the chunks'
/// results. Of equal logits the one with the smaller id comes first. Places that are not wanted have zeros.
#[derive(Debug, Clone, PartialEq)]
pub struct LogProbs;

impl Graph {
    /// What log-probabilities need of logits [R, V]: values [R, [`LOG_PROB_VALUES`]] and ids [R, [`MOST_LIKELY`]]; see
    /// [`LogProbs`].
    pub fn log_probs(&mut self, logits: Tensor, chosen: Tensor, wanted: Tensor) -> [Tensor; 2] {
        let (rows, chunks) = (self.rows(logits), self.width(logits).div_ceil(SHORTEST_CHUNK));
        let values = self.tensor(&[rows, LOG_PROB_VALUES], Dtype::F32);
        let ids = self.tensor(&[rows, MOST_LIKELY], Dtype::U32);
        let parts = self.tensor(&[rows, chunks, 4], Dtype::U32);
        self.record(LogProbs, &[logits, chosen, wanted], &[values, ids, parts]);
        [values, ids]
    }
}

impl Op for LogProbs {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "log_probs"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let (rows, vocabulary) = (to.input_shape(0)[0], to.input_shape(0)[1]);
        let software = to.capabilities().software;
        let chunk = match software {
            true => SOFTWARE_CHUNK,
            false => vocabulary.div_ceil(MOST_CHUNKS).next_power_of_two().max(SHORTEST_CHUNK),
        };
        let chunks = vocabulary.div_ceil(chunk);
        let defines = Defines::new().set("V", vocabulary).set("CHUNK", chunk).set("CHUNKS", chunks);
        let (vectors, _) = grid::vectors(defines.clone(), vocabulary);
        let threads = grid::row_threads(to, if software { 256 } else { chunk / 4 });
        let tree = u64::from(threads.ilog2()) + 1;
        let text = KernelText {
            name: "log_probs_scan",
            parts: &[FLOAT_ORDER, BEST_OF, wgsl!("sampling/log_probs_scan.wgsl")],
            defines: vectors.set("THREADS", threads),
            turns: 2 * (grid::walk(chunk, threads) + tree),
        };
        let bindings = vec![to.input(0), to.output(2)];
        to.emit(text, &[bindings], [Extent::Fixed(chunks as u32), Extent::Fixed(rows as u32), Extent::Fixed(1)])?;
        let threads = grid::row_threads(to, 256);
        let tree = u64::from(threads.ilog2()) + 1;
        let offers = grid::walk(chunks, threads);
        let place = 1 + grid::walk(chunk, threads) + tree + offers + tree;
        let text = KernelText {
            name: "log_probs",
            parts: &[FLOAT_ORDER, BEST_OF, wgsl!("sampling/log_probs.wgsl")],
            defines: defines.set("THREADS", threads).set("TOP", MOST_LIKELY),
            turns: 3 * offers + 2 * tree + grid::walk(MOST_LIKELY, threads) + MOST_LIKELY as u64 * place + 1,
        };
        let bindings = vec![to.input(0), to.output(2), to.input(1), to.input(2), to.output(0), to.output(1)];
        to.emit(text, &[bindings], grid::rows_grid(rows))
    }

    fn compute(&self, step: &mut CpuStep<'_>) {
        let [values, ids, _] = step.outputs else { unreachable!("log_probs has three outputs") };
        let about = step.inputs[1].u32().iter().zip(step.inputs[2].u32());
        let rows = values.f32_mut().chunks_exact_mut(LOG_PROB_VALUES).zip(ids.u32_mut().chunks_exact_mut(MOST_LIKELY));
        for ((logits, (&chosen, &wanted)), (values, ids)) in step.inputs[0].rows().zip(about).zip(rows) {
            let top = largest(logits, (wanted as usize).clamp(1, MOST_LIKELY));
            let peak = top.first().map_or(0.0, |&(logit, _)| logit);
            // Short runs, because each is summed in f32.
            let mass = |part: &[f32]| f64::from(lane_sum(part, |logit| exp(logit - peak)));
            let sum: f64 = logits.chunks(4096).map(mass).sum();
            write_row(values, ids, [peak, sum as f32, logits[chosen as usize]], &top[..top.len().min(wanted as usize)]);
        }
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let [values, ids, _] = outputs else { unreachable!("log_probs has three outputs") };
        let about = inputs[1].u32().iter().zip(inputs[2].u32());
        let rows = values.f32_mut().chunks_exact_mut(LOG_PROB_VALUES).zip(ids.u32_mut().chunks_exact_mut(MOST_LIKELY));
        for ((logits, (&chosen, &wanted)), (values, ids)) in inputs[0].rows().zip(about).zip(rows) {
            let mut order: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
            order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let peak = order[0].0;
            let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(peak)).exp()).sum();
            order.truncate((wanted as usize).min(MOST_LIKELY));
            write_row(values, ids, [peak, sum as f32, logits[chosen as usize]], &order);
        }
    }
}

fn write_row(values: &mut [f32], ids: &mut [u32], first: [f32; 3], top: &[(f32, u32)]) {
    values.fill(0.0);
    ids.fill(0);
    values[..3].copy_from_slice(&first);
    for (place, &(logit, id)) in top.iter().enumerate() {
        values[3 + place] = logit;
        ids[place] = id;
    }
}

/// The `count` largest logits with their ids, in descending order; the smaller id first among equals.
fn largest(logits: &[f32], count: usize) -> Vec<(f32, u32)> {
    let mut top: Vec<(f32, u32)> = Vec::with_capacity(count + 1);
    for (id, &logit) in logits.iter().enumerate() {
        if top.len() == count && top.last().is_some_and(|last| logit.total_cmp(&last.0).is_le()) {
            continue;
        }
        let place = top.partition_point(|other| other.0.total_cmp(&logit).is_ge());
        top.insert(place, (logit, id as u32));
        top.truncate(count);
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_ties_by_id() {
        let logits = [1.0, 3.0, -0.0, 3.0, 0.0, 2.0];
        assert_eq!(largest(&logits, 3), [(3.0, 1), (3.0, 3), (2.0, 5)]);
        let all: Vec<u32> = largest(&logits, 9).into_iter().map(|entry| entry.1).collect();
        assert_eq!(all, [1, 3, 5, 0, 4, 2], "-0 is below 0");
    }
}
