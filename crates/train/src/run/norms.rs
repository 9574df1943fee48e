//! Notices a gradient norm that is out of all proportion.

/// Steps whose norms make the median.
const WINDOW: usize = 32;

/// Steps that are needed for a median.
const ENOUGH: usize = 5;

/// A first norm above this is noted: the mean loss of a language model has norms of 0.1 to 100.
const LARGE_FIRST: f64 = 1e3;

/// A norm this many times the median is noted.
const LARGE_RATIO: f64 = 100.0;

/// The latest norms of a run.
#[derive(Debug, Default)]
pub(super) struct Norms {
    latest: Vec<f64>,
    noted: bool,
}

impl Norms {
    /// Adds a norm. Returns the median before it (`None` inside: too few steps) if the norm is out of proportion, the
    /// first time.
    pub(super) fn add(&mut self, norm: f64) -> Option<Option<f64>> {
        let mut sorted = self.latest.clone();
        sorted.sort_by(f64::total_cmp);
        let median = (sorted.len() >= ENOUGH).then(|| sorted[sorted.len() / 2]);
        let large = median.map_or(norm > LARGE_FIRST, |median| norm > LARGE_RATIO * median.max(1e-6));
        if self.latest.len() == WINDOW {
            self.latest.remove(0);
        }
        self.latest.push(norm);
        let first = large && !self.noted;
        self.noted |= large;
        first.then_some(median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_norm_out_of_proportion_is_noted() {
        let mut norms = Norms::default();
        assert_eq!(norms.add(4571.0), Some(None), "a first norm");
        assert_eq!(norms.add(4571.0), None, "once");
        let mut norms = Norms::default();
        for norm in [19.1, 12.0, 30.0, 8.0, 900.0, 17.0, 80.0] {
            assert_eq!(norms.add(norm), None, "{norm}");
        }
        assert_eq!(norms.add(14_330_887.0), Some(Some(19.1)));
        assert_eq!(norms.add(14_330_887.0), None);
    }
}
