//! Learning rates by step, equal to transformers' `get_*_schedule_with_warmup`.
//!
//! With warm-up the first step has rate 0, as in transformers, so that a run can be compared with PyTorch's step by
//! step. Rejected for that reason: starting the warm-up at 1 / warm-up, which wastes no step.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The shape after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Cosine decay to 0 over half a period.
    #[default]
    Cosine,
    /// Linear decay to 0.
    Linear,
    /// Constant.
    Constant,
}

/// Learning rates of a whole run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub scheduler: Scheduler,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up from 0 to the peak.
    pub warmup_steps: u64,
    /// Optimizer steps of the run, warm-up included.
    pub total_steps: u64,
}

impl Schedule {
    /// The rate of optimizer step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        self.learning_rate * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        let over = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        if step < self.warmup_steps {
            return over(step, self.warmup_steps);
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps);
        match self.scheduler {
            Scheduler::Constant => 1.0,
            Scheduler::Linear => over(self.total_steps.saturating_sub(step), decay_steps),
            Scheduler::Cosine => {
                let progress = over(step - self.warmup_steps, decay_steps);
                (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-15 + 1e-12 * b.abs()
    }

    #[test]
    fn rates_are_those_of_transformers() {
        for case in ["llama3_r8_all", "qwen2_r4_rslora"] {
            let expected = crate::testing::lora_expected(case);
            let schedule =
                Schedule { scheduler: Scheduler::Cosine, learning_rate: 1e-3, warmup_steps: 3, total_steps: 20 };
            for mode in ["token_mean", "mean_of_means"] {
                let log = expected["training"][mode]["log"].as_array().unwrap();
                assert_eq!(log.len(), 20);
                for entry in log {
                    let (step, lr) = (entry["step"].as_u64().unwrap(), entry["lr"].as_f64().unwrap());
                    assert!(close(schedule.at(step), lr), "{case} {mode} step {step}: {} {lr}", schedule.at(step));
                }
            }
        }
    }

    #[test]
    fn linear_and_constant_begin_and_end_where_they_should() {
        let schedule =
            |scheduler, warmup_steps| Schedule { scheduler, learning_rate: 2.0, warmup_steps, total_steps: 12 };
        let linear = schedule(Scheduler::Linear, 2);
        let rates: Vec<f64> = (0..13).map(|s| linear.at(s)).collect();
        let want = [0.0, 1.0, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0];
        assert!(rates.iter().zip(want).all(|(a, b)| close(*a, b)), "{rates:?}");
        assert_eq!(linear.at(1000), 0.0);
        let constant = schedule(Scheduler::Constant, 0);
        assert!((0..20).all(|s| constant.at(s) == 2.0));
        assert_eq!(schedule(Scheduler::Constant, 4).at(0), 0.0);
        assert_eq!(schedule(Scheduler::Cosine, 0).at(0), 2.0);
        assert!(close(schedule(Scheduler::Cosine, 0).at(6), 1.0));
        let all_warm = Schedule { scheduler: Scheduler::Cosine, learning_rate: 1.0, warmup_steps: 5, total_steps: 5 };
        assert!((0..10).all(|s| all_warm.at(s).is_finite()));
    }
}
