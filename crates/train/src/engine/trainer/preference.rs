//! Preference pairs (DPO): their log-probabilities, and the gradients of their loss.

use super::{Trainer, finite};
use crate::MicroBatch;
use crate::engine::EngineError;
use crate::engine::step::{LossInputs, StepKind};

/// The result of a micro-batch of preference pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct PairResult {
    /// Summed loss times the scale.
    pub loss: f64,
    /// For each pair: log-probability of the chosen and of the rejected answer under the policy, margin β (Δ − Δref),
    /// loss.
    pub pairs: Vec<[f32; 4]>,
}

impl Trainer {
    /// Log-probabilities of pairs under the base model without the adapter: sequence 2p of the batch is the chosen
    /// answer, 2p + 1 the rejected one.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub async fn reference_log_probabilities(&mut self, batch: &MicroBatch) -> Result<Vec<[f32; 2]>, EngineError> {
        self.pair_sums(batch, StepKind::Base).await
    }

    /// As [`Trainer::reference_log_probabilities`], under the model with the adapter.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub async fn log_probabilities(&mut self, batch: &MicroBatch) -> Result<Vec<[f32; 2]>, EngineError> {
        self.pair_sums(batch, StepKind::Evaluate).await
    }

    async fn pair_sums(&mut self, batch: &MicroBatch, kind: StepKind) -> Result<Vec<[f32; 2]>, EngineError> {
        let pairs = pairs_of(batch)?;
        let result = self.run(batch, kind, &LossInputs::Scale(1.0)).await?;
        let sums = result.sums.get(..2 * pairs).unwrap_or_default();
        Ok(sums.chunks_exact(2).map(|pair| [-pair[0] as f32, -pair[1] as f32]).collect())
    }

    /// Adds the gradients of `scale` · Σ DPO loss (sigmoid) over the pairs.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub async fn accumulate_pairs(
        &mut self,
        batch: &MicroBatch,
        reference: &[[f32; 2]],
        beta: f64,
        scale: f64,
    ) -> Result<PairResult, EngineError> {
        let pairs = pairs_of(batch)?;
        if reference.len() != pairs {
            return Err(EngineError::input(
                "reference",
                format!("one for each of {pairs} pairs"),
                reference.len().to_string(),
                "compute it for this batch",
            ));
        }
        let loss_factor = self.loss_factor();
        let loss_inputs = LossInputs::Preference(reference.to_vec(), beta as f32, (scale * loss_factor) as f32);
        let result = self.run(batch, StepKind::Preference, &loss_inputs).await?;
        Ok(PairResult { loss: finite(f64::from(result.loss) / loss_factor)?, pairs: result.pairs })
    }
}

pub(super) fn pairs_of(batch: &MicroBatch) -> Result<usize, EngineError> {
    let sequences = batch.starts.len();
    if sequences == 0 || !sequences.is_multiple_of(2) {
        return Err(EngineError::input(
            "preference batch",
            "pairs of sequences",
            format!("{sequences} sequences"),
            "alternate chosen and rejected sequences",
        ));
    }
    Ok(sequences / 2)
}
