//! Log-probabilities of tokens, from the logits that the host reads.

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

impl TokenScore {
    /// The score of token `id` under logits \[V\], with the `top` most likely ones.
    pub(super) fn new(logits: &[f32], id: u32, top: usize) -> TokenScore {
        let shift = log_sum(logits);
        let of = |id: u32| (f64::from(logits[id as usize]) - shift) as f32;
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let top = top.min(order.len());
        if top < order.len() && top > 0 {
            order.select_nth_unstable_by(top - 1, likelier);
        }
        order.truncate(top);
        order.sort_unstable_by(likelier);
        TokenScore { id, logprob: of(id), top: order.into_iter().map(|id| (id, of(id))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, 2.0, 3.0, -40.0];
        let score = TokenScore::new(&logits, 2, 3);
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        assert!((f64::from(score.logprob) - (2.0 - total.ln())).abs() < 1e-6, "{score:?}");
        assert_eq!(score.top.iter().map(|entry| entry.0).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(score.top[2].1, score.logprob);
        assert_eq!(TokenScore::new(&logits, 1, 1).top, [(1, TokenScore::new(&logits, 1, 0).logprob)]);
        let all = TokenScore::new(&logits, 0, 9).top;
        assert_eq!(all.len(), 5);
        assert!((all.iter().map(|entry| f64::from(entry.1).exp()).sum::<f64>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_first_of_equal_logits_is_the_most_likely() {
        assert_eq!(most_likely(&[0.0, 2.0, 2.0, 1.0]), 1);
    }
}
