//! Preference runs: the reference's log-probabilities, and the evaluation loss of pairs.

use super::{Event, Observer, RunError, Units};
use crate::MicroBatch;
use crate::engine::{EngineError, Trainer};

/// Log-probabilities (chosen, rejected) of every example under the base model alone.
pub(super) async fn reference(
    trainer: &mut Trainer,
    units: &Units,
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<[f32; 2]>, RunError> {
    let batches = units.batches(batch_size);
    let mut all = Vec::with_capacity(units.len());
    for (done, batch) in batches.iter().enumerate() {
        all.extend(trainer.reference_log_probabilities(&units.micro_batch(batch)).await?);
        observer.event(Event::Reference { done: done + 1, total: batches.len() });
    }
    Ok(all)
}

/// Statistics of the pairs' margins β (Δ − Δref).
#[derive(Debug, Default)]
pub(super) struct Tally {
    pairs: usize,
    right: usize,
    sum: f64,
}

impl Tally {
    /// Adds a pair.
    pub fn add(&mut self, margin: f64) {
        self.pairs += 1;
        self.right += usize::from(margin > 0.0);
        self.sum += margin;
    }

    /// The fraction of pairs with a margin above 0, and the mean margin.
    pub fn means(&self) -> (Option<f64>, Option<f64>) {
        let over = |value: f64| (self.pairs > 0).then(|| value / self.pairs as f64);
        (over(self.right as f64), over(self.sum))
    }
}

/// Summed sigmoid losses of a batch of pairs, and their number.
pub(super) async fn evaluate(
    trainer: &mut Trainer,
    batch: &MicroBatch,
    beta: f64,
    tally: &mut Tally,
) -> Result<(f64, usize), EngineError> {
    let reference = trainer.reference_log_probabilities(batch).await?;
    let policy = trainer.log_probabilities(batch).await?;
    let mut loss = 0.0;
    for (policy, reference) in policy.iter().zip(&reference) {
        let [chosen, rejected] = [0, 1].map(|which| f64::from(policy[which]) - f64::from(reference[which]));
        let margin = beta * (chosen - rejected);
        tally.add(margin);
        loss += softplus(-margin);
    }
    if !loss.is_finite() {
        return Err(EngineError::NotFinite { what: "the evaluation loss".into() });
    }
    Ok((loss, policy.len()))
}

/// ln(1 + eˣ)
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
