//! Log-probabilities of tokens, from what the device gives of each row of logits, or from the logits themselves.

use bayan_tensor::Values;
use bayan_tensor::ops::{LOG_PROB_VALUES, MOST_LIKELY};

/// The log-probability of a token, and of the most likely ones at its place. All numbers of one place come from the
/// same logits and the same sum, so that equal tokens have equal numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub id: u32,
    /// Its natural log-probability.
    pub logprob: f32,
    /// The most likely tokens with their log-probabilities, the likeliest first; equal ones by id.
    pub top: Vec<(u32, f32)>,
}

/// ln Σ exp of logits \[V\]: a logit minus this is its token's log-probability.
pub fn log_sum(logits: &[f32]) -> f64 {
    let peak = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    peak + logits.iter().map(|&logit| (f64::from(logit) - peak).exp()).sum::<f64>().ln()
}

/// The first of the largest logits.
pub fn most_likely(logits: &[f32]) -> usize {
    let larger = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
    (0..logits.len()).fold(0, larger)
}

/// What a device computed of each row of logits ([`bayan_tensor::ops::LogProbs`]).
pub(super) struct Scores {
    pub(super) values: Values,
    pub(super) ids: Values,
}

impl Scores {
    /// The score of a row's token `id` with the `top` most likely ones.
    pub(super) fn of_row(&self, row: usize, id: u32, top: usize) -> TokenScore {
        let values = &self.values.f32()[row * LOG_PROB_VALUES..][..LOG_PROB_VALUES];
        let ids = &self.ids.u32()[row * MOST_LIKELY..][..MOST_LIKELY];
        let shift = f64::from(values[0]) + f64::from(values[1]).ln();
        let of = |logit: f32| (f64::from(logit) - shift) as f32;
        let likeliest = ids.iter().zip(&values[3..]).take(top);
        TokenScore { id, logprob: of(values[2]), top: likeliest.map(|(&id, &logit)| (id, of(logit))).collect() }
    }

    /// The log-probabilities of a row's token and of the most likely one, with the digits of [`Scores::of_row`].
    pub(super) fn of_pair(&self, row: usize) -> (f32, f32) {
        let values = &self.values.f32()[row * LOG_PROB_VALUES..][..LOG_PROB_VALUES];
        let shift = f64::from(values[0]) + f64::from(values[1]).ln();
        let of = |logit: f32| (f64::from(logit) - shift) as f32;
        (of(values[2]), of(values[3]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, 2.0];
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let mut values = vec![0.0; 2 * LOG_PROB_VALUES];
        let sum = logits.iter().map(|&l| (l - 3.0).exp()).sum();
        values[LOG_PROB_VALUES..][..6].copy_from_slice(&[3.0, sum, 2.0, 3.0, 2.0, 1.0]);
        let mut ids = vec![0; 2 * MOST_LIKELY];
        ids[MOST_LIKELY..][..3].copy_from_slice(&[1, 2, 0]);
        let scores = Scores { values: Values::F32(values), ids: Values::U32(ids) };
        let score = scores.of_row(1, 2, 3);
        assert!((f64::from(score.logprob) - (2.0 - total.ln())).abs() < 1e-6, "{score:?}");
        assert_eq!(scores.of_pair(1), (score.logprob, score.top[0].1), "the same bits");
        assert_eq!(score.top.iter().map(|entry| entry.0).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(score.top[1].1, score.logprob);
        assert!((score.top.iter().map(|entry| f64::from(entry.1).exp()).sum::<f64>() - 1.0).abs() < 1e-6);
        assert!((log_sum(&logits) - total.ln()).abs() < 1e-9);
    }

    #[test]
    fn the_first_of_equal_logits_is_the_most_likely() {
        assert_eq!(most_likely(&[0.0, 2.0, 2.0, 1.0]), 1);
    }
}
