//! Losses: from the statistics of each row to the loss and the weight of each row's gradient. Both are computed on the
//! device, so that a step reads back only the loss.

use bayan_gpu::GpuError;
use bayan_gpu::shader::Defines;

use super::cross_entropy::IGNORED;
use crate::graph::{Dtype, Graph, Op, Operand, Tensor, Values};
use crate::plan::{Extent, KernelText, Lowering, grid};

/// loss = Σ weights\[r\] nll\[r\]. Inputs: statistics [R, 4], targets \[R\], weights \[R\]; outputs: nll \[R\] (0 where
/// ignored), loss \[4\]: the loss, and the sum of nll.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedLoss;

/// Direct preference optimisation with the sigmoid loss (Rafailov et al., 2023): mean over pairs of −ln σ(β (Δ −
/// Δref)), where Δ is the difference of the summed log-probabilities of the chosen and the rejected answer. Inputs:
/// statistics [R, 4], sequence_of_row \[R\] (2 · pair, plus 1 for the rejected answer; [`IGNORED`] for a row of no answer),
/// reference [P, 2] sums, settings \[4\] (β, scale of loss and gradient); outputs: nll \[R\], weights \[R\], pairs [P,
/// 4] (log-probability of chosen and rejected, margin z, loss), loss \[4\].
#[derive(Debug, Clone, PartialEq)]
pub struct PreferenceLoss;

impl Graph {
    /// The loss \[4\] and nll \[R\] of weighted rows.
    pub fn weighted_loss(&mut self, statistics: Tensor, targets: Tensor, weights: Tensor) -> (Tensor, Tensor) {
        let rows = self.rows(statistics);
        let (nll, loss) = (self.tensor(&[rows], Dtype::F32), self.tensor(&[4], Dtype::F32));
        self.record(WeightedLoss, &[statistics, targets, weights], &[nll, loss]);
        (loss, nll)
    }

    /// The outputs of [`PreferenceLoss`]: nll, weights, pairs, loss.
    pub fn preference_loss(
        &mut self,
        statistics: Tensor,
        sequence_of_row: Tensor,
        reference: Tensor,
        settings: Tensor,
    ) -> [Tensor; 4] {
        let (rows, pairs) = (self.rows(statistics), self.rows(reference));
        let outputs = [vec![rows], vec![rows], vec![pairs, 4], vec![4]].map(|shape| self.tensor(&shape, Dtype::F32));
        self.record(PreferenceLoss, &[statistics, sequence_of_row, reference, settings], &outputs);
        outputs
    }
}

fn nll(known: &[f32], target: u32) -> f64 {
    if target == IGNORED { 0.0 } else { f64::from(known[0]) + f64::from(known[1]).ln() - f64::from(known[2]) }
}

/// A single workgroup computes it: there are at most a few thousand rows.
const THREADS: usize = 64;

fn emit(to: &mut Lowering<'_>, name: &str, text: &str, defines: Defines, outputs: usize) -> Result<(), GpuError> {
    let threads = grid::group_threads(to.capabilities(), THREADS);
    let defines = grid::reduction(to, defines.set("R", to.input_shape(0)[0]), threads);
    let mut bindings: Vec<_> = (0..to.input_count()).map(|i| to.input(i)).collect();
    bindings.extend((0..outputs).map(|i| to.output(i)));
    // The loss of pairs loops over all rows twice for each pair.
    let pairs = if outputs > 2 { to.input_shape(2)[0] } else { 1 } as u64;
    let turns = 1 + pairs * (1 + 2 * grid::walk(to.input_shape(0)[0], threads) + 4 * grid::REDUCTION);
    let parts = [wgsl!("lib/reduce.wgsl"), text];
    to.emit(
        KernelText { name, parts: &parts, defines, turns },
        &[bindings],
        [Extent::Fixed(1), Extent::Fixed(1), Extent::Fixed(1)],
    )
}

impl Op for WeightedLoss {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "weighted_loss"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        emit(to, "weighted_loss", wgsl!("training/weighted_loss.wgsl"), Defines::new(), 2)
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let (mut loss, mut sum) = (0.0, 0.0);
        for (r, known) in inputs[0].rows().enumerate() {
            let nll = nll(known, inputs[1].u32()[r]);
            outputs[0].f32_mut()[r] = nll as f32;
            loss += nll * f64::from(inputs[2].f32()[r]);
            sum += nll;
        }
        outputs[1].f32_mut()[..2].copy_from_slice(&[loss as f32, sum as f32]);
    }
}

impl Op for PreferenceLoss {
    crate::op_as_any!();

    fn name(&self) -> &'static str {
        "preference_loss"
    }

    fn dispatch(&self, to: &mut Lowering<'_>) -> Result<(), GpuError> {
        let defines = Defines::new().set("P", to.input_shape(2)[0]);
        emit(to, "preference_loss", wgsl!("training/preference_loss.wgsl"), defines, 4)
    }

    fn reference(&self, inputs: &[Operand<'_>], outputs: &mut [Values]) {
        let sequence_of_row = inputs[1].u32();
        let reference = inputs[2].f32();
        let (beta, scale) = (f64::from(inputs[3].f32()[0]), f64::from(inputs[3].f32()[1]));
        let mut sums = vec![0.0f64; reference.len()];
        for (r, known) in inputs[0].rows().enumerate() {
            let nll = nll(known, sequence_of_row[r]);
            outputs[0].f32_mut()[r] = nll as f32;
            if let Some(sum) = sums.get_mut(sequence_of_row[r] as usize) {
                *sum -= nll;
            }
        }
        let mut total = 0.0;
        let mut slopes = vec![0.0; sums.len()];
        let pairs = sums.len() / 2;
        for p in 0..pairs {
            let z = beta
                * ((sums[2 * p] - sums[2 * p + 1]) - (f64::from(reference[2 * p]) - f64::from(reference[2 * p + 1])));
            let loss = if z > 0.0 { (-z).exp().ln_1p() } else { z.exp().ln_1p() - z };
            let slope = scale * beta / (1.0 + z.exp());
            (slopes[2 * p], slopes[2 * p + 1]) = (slope, -slope);
            total += loss * scale;
            outputs[2].f32_mut()[4 * p..4 * p + 4].copy_from_slice(&[
                sums[2 * p] as f32,
                sums[2 * p + 1] as f32,
                z as f32,
                loss as f32,
            ]);
        }
        for (r, &sequence) in sequence_of_row.iter().enumerate() {
            outputs[1].f32_mut()[r] = slopes.get(sequence as usize).copied().unwrap_or(0.0) as f32;
        }
        outputs[3].f32_mut()[0] = total as f32;
    }
}
