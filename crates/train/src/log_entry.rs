//! What is known of a step or an evaluation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line of the log: a training step or an evaluation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LogEntry {
    /// The optimizer step, from 0.
    pub step: u64,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// The training loss of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// The learning rate of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// The global norm of the gradients before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Tokens per second over the last steps, counting all tokens of the sequences, without evaluations and saves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Time of the step in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_seconds: Option<f64>,
    /// Device memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// With f16: the loss scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// With f16: updates skipped since the run began, and repeated with a lower scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped_updates: Option<u64>,
    /// Loss on the evaluation data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// DPO: fraction of the pairs whose chosen answer has the higher reward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_accuracy: Option<f64>,
    /// DPO: mean reward margin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_margin: Option<f64>,
    /// Scores of benchmarks by their names, from 0 to 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, f64>,
}

impl LogEntry {
    /// The names and values of the TensorBoard curves.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn scalars(&self) -> impl Iterator<Item = (String, f64)> {
        let memory = self.memory_bytes.map(|bytes| bytes as f64);
        let all = [
            ("train/loss", self.loss),
            ("train/learning_rate", self.learning_rate),
            ("train/grad_norm", self.grad_norm),
            ("train/tokens_per_second", self.tokens_per_second),
            ("train/step_seconds", self.step_seconds),
            ("train/memory_bytes", memory),
            ("train/loss_scale", self.loss_scale),
            ("train/reward_accuracy", self.reward_accuracy),
            ("train/reward_margin", self.reward_margin),
            ("eval/loss", self.eval_loss),
        ];
        let scores = self.scores.iter().map(|(name, score)| (format!("benchmark/{name}"), *score));
        all.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_owned(), value))).chain(scores)
    }
}
