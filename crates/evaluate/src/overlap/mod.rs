//! How much a text has in common with a reference: BLEU, chrF and TER as sacrebleu 2.6.0 computes them with its
//! defaults, and ROUGE as rouge-score 0.1.2 and `evaluate` 0.4.6 do.
//!
//! Each pair of texts is counted once. A score of many pairs follows from the sums of their counts, so that bootstrap
//! samples cost no more than sums. Own code, because crates for these metrics divide texts into words in other ways or
//! smooth otherwise.

mod bleu;
mod chrf;
mod rouge;
mod ter;

use crate::data::{NumpyRandom, PythonRandom, python};
use crate::metric::{Score, deviation};
use crate::task::Metric;

/// Bootstrap samples of lm-evaluation-harness's standard errors of BLEU, chrF and TER.
const ERROR_SAMPLES: usize = 100;

/// Bootstrap samples whose median `evaluate` gives as a ROUGE score.
const ROUGE_SAMPLES: usize = 1000;

/// lm-evaluation-harness's seed of NumPy's generator.
const NUMPY_SEED: u32 = 1234;

/// The ROUGE scores in the order in which `evaluate` draws their bootstrap samples.
const ROUGE: [Metric; 4] = [Metric::Rouge1, Metric::Rouge2, Metric::RougeL, Metric::RougeLsum];

/// What a metric counts in an answer and its reference; for ROUGE their score. Other metrics count nothing.
pub fn counts(metric: Metric, answer: &str, reference: &str) -> Vec<f64> {
    let counted = match metric {
        Metric::Bleu => bleu::counts(answer, reference).to_vec(),
        Metric::Chrf => chrf::counts(answer, reference).to_vec(),
        Metric::Ter => ter::counts(answer, reference).to_vec(),
        Metric::Rouge1 => return vec![rouge::ngrams(answer, reference, 1)],
        Metric::Rouge2 => return vec![rouge::ngrams(answer, reference, 2)],
        Metric::RougeL => return vec![rouge::longest(answer, reference)],
        // lm-evaluation-harness gives the reference as the answer here, and the answer as the reference.
        Metric::RougeLsum => return vec![rouge::longest_by_line(reference, answer)],
        Metric::Acc | Metric::AccNorm | Metric::F1 | Metric::Accuracy => Vec::new(),
    };
    counted.into_iter().map(|count| count as f64).collect()
}

/// The score of one pair, or of many from the sums of their counts.
pub fn score(metric: Metric, sums: &[f64]) -> f64 {
    match metric {
        Metric::Bleu => bleu::score(sums),
        Metric::Chrf => chrf::score(sums),
        Metric::Ter => ter::score(sums),
        _ => sums.first().copied().unwrap_or(0.0),
    }
}

/// The score of all pairs, with lm-evaluation-harness's standard error, which ROUGE has none of.
pub fn total(metric: Metric, items: &[&[f64]]) -> Score {
    if let Some(place) = ROUGE.iter().position(|rouge| *rouge == metric) {
        let values: Vec<f64> = items.iter().filter_map(|counts| counts.first().copied()).collect();
        return Score { value: median_of_means(&values, place), error: None, items: items.len() };
    }
    let all: Vec<usize> = (0..items.len()).collect();
    let value = score(metric, &sums(items, &all));
    let mut random = PythonRandom::new(0);
    let samples: Vec<f64> = (0..ERROR_SAMPLES)
        .map(|_| {
            let drawn: Vec<usize> = items.iter().map(|_| random.choice(items.len())).collect();
            score(metric, &sums(items, &drawn))
        })
        .collect();
    let error = (items.len() > 1).then(|| deviation(&samples));
    Score { value, error, items: items.len() }
}

/// The sums of the counts of some items.
pub(crate) fn sums(items: &[&[f64]], drawn: &[usize]) -> Vec<f64> {
    let width = items.first().map_or(0, |counts| counts.len());
    let mut sums = vec![0.0; width];
    for &at in drawn {
        sums.iter_mut().zip(items[at]).for_each(|(sum, count)| *sum += count);
    }
    sums
}

/// The median of the means of bootstrap samples, of the metric that is the `place`th to draw.
fn median_of_means(values: &[f64], place: usize) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let mut random = NumpyRandom::new(NUMPY_SEED);
    let mut means = Vec::with_capacity(ROUGE_SAMPLES);
    for _ in 0..=place {
        means.clear();
        for _ in 0..ROUGE_SAMPLES {
            let sum: f64 = (0..values.len()).map(|_| values[random.below(values.len())]).sum();
            means.push(sum / values.len() as f64);
        }
    }
    means.sort_by(f64::total_cmp);
    f64::midpoint(means[ROUGE_SAMPLES / 2 - 1], means[ROUGE_SAMPLES / 2])
}

/// Python's `text.split()`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(python::is_space).filter(|word| !word.is_empty())
}
