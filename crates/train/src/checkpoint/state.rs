//! The state of a run between two steps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::VERSION;
use crate::engine::LossScale;
use crate::order::Position;
use crate::rng::Rng;
use crate::schedule::Schedule;

/// The state of a run between two steps, apart from its arrays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// The version of this layout.
    pub version: u32,
    /// Optimizer steps done; also the number of the next step, counted from 0.
    pub step: u64,
    /// Where the next batch begins.
    pub position: Position,
    /// Learning rates of the whole run.
    pub schedule: Schedule,
    /// Random generators by purpose (dropout, neftune, …).
    pub rngs: BTreeMap<String, Rng>,
    /// The state of f16 loss scaling, where it is used.
    pub loss_scale: Option<LossScale>,
    /// Step count and loss of the lowest evaluation loss so far.
    pub best: Option<(u64, f64)>,
    /// Evaluations since the best one.
    pub evaluations_without_better: u64,
    /// Training tokens seen.
    pub tokens: u64,
    /// The resolved recipe.
    pub recipe: Value,
    /// The data set's fingerprint: a resumed run must read the same examples.
    pub data_fingerprint: u64,
}

impl TrainState {
    /// The state before the first step.
    pub fn new(schedule: Schedule, recipe: &crate::Recipe, data_fingerprint: u64) -> Self {
        Self {
            version: VERSION,
            step: 0,
            position: Position::default(),
            schedule,
            rngs: BTreeMap::new(),
            loss_scale: None,
            best: None,
            evaluations_without_better: 0,
            tokens: 0,
            recipe: serde_json::to_value(recipe).unwrap_or_default(),
            data_fingerprint,
        }
    }

    /// Records an evaluation loss. Returns whether it is the best so far, and whether the patience is exhausted.
    pub fn evaluated(&mut self, loss: f64, patience: Option<u64>) -> (bool, bool) {
        let better = loss.is_finite() && self.best.is_none_or(|(_, best)| loss < best);
        if better {
            self.best = Some((self.step, loss));
            self.evaluations_without_better = 0;
        } else {
            self.evaluations_without_better += 1;
        }
        (better, patience.is_some_and(|patience| self.evaluations_without_better >= patience))
    }
}
