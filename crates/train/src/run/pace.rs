//! The speed of a run over its last steps.
//!
//! The first step of each batch size compiles kernels, so that a mean over the whole run is far from the present speed
//! for a long time. Evaluations and saves are not counted.

use std::collections::VecDeque;
use std::time::Duration;

/// Steps that the mean is taken over.
const STEPS: usize = 10;

/// Tokens and times of the last steps.
#[derive(Debug, Default)]
pub(super) struct Pace {
    steps: VecDeque<(usize, Duration)>,
}

impl Pace {
    /// Counts a step.
    pub(super) fn add(&mut self, tokens: usize, elapsed: Duration) {
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back((tokens, elapsed));
    }

    fn seconds(&self) -> f64 {
        self.steps.iter().map(|(_, elapsed)| elapsed.as_secs_f64()).sum()
    }

    /// Tokens per second of the last steps.
    pub(super) fn tokens_per_second(&self) -> f64 {
        self.steps.iter().map(|(tokens, _)| *tokens as f64).sum::<f64>() / self.seconds().max(1e-9)
    }

    /// The time that `steps` more steps take at this speed.
    pub(super) fn time_of(&self, steps: u64) -> Duration {
        let each = self.seconds() / self.steps.len().max(1) as f64;
        Duration::try_from_secs_f64(each * steps as f64).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_slow_step_is_forgotten() {
        let mut pace = Pace::default();
        pace.add(100, Duration::from_secs(50));
        assert!((pace.tokens_per_second() - 2.0).abs() < 1e-9);
        assert_eq!(pace.time_of(2), Duration::from_secs(100));
        (0..STEPS).for_each(|_| pace.add(100, Duration::from_secs(1)));
        assert!((pace.tokens_per_second() - 100.0).abs() < 1e-9);
        assert_eq!(pace.time_of(7), Duration::from_secs(7));
    }
}
