//! Picks, scores and their standard errors.

use bayan_train::Rng;

use crate::data::python;
use crate::task::Extract;

/// The number of the first largest value.
pub fn first_largest(values: &[f64]) -> usize {
    (0..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

/// The pick by log-likelihood.
pub fn pick(sums: &[f64]) -> usize {
    first_largest(sums)
}

/// The pick by log-likelihood for each code point of the choice, without what is between question and choice.
pub fn pick_normalized(sums: &[f64], choices: &[String]) -> usize {
    let normalized: Vec<f64> =
        sums.iter().zip(choices).map(|(sum, choice)| sum / choice.chars().count() as f64).collect();
    first_largest(&normalized)
}

/// The answer in a generated text, as the harness finds it.
pub fn extract(rule: Extract, text: &str) -> String {
    let line = text.split('\n').next().unwrap_or_default();
    match rule {
        Extract::All => python::strip(text).to_owned(),
        Extract::Letters => ['A', 'B', 'C', 'D'].into_iter().filter(|letter| line.contains(*letter)).collect(),
        Extract::YesNo => {
            let found = ["نعم", "لا"].into_iter().filter_map(|word| line.find(word).map(|at| (at, word)));
            found.min().map(|(_, word)| word.to_owned()).unwrap_or_default()
        }
    }
}

/// A score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Its value, from 0 to 1 or, where the harness gives it in percent, from 0 to 100.
    pub value: f64,
    /// Its standard error; `None` where one item is all there is.
    pub error: Option<f64>,
    /// Number of items.
    pub items: usize,
}

/// The mean of values, with the standard error of the mean from the sample's deviation.
pub fn mean(values: &[f64]) -> Score {
    let count = values.len() as f64;
    let value = values.iter().sum::<f64>() / count.max(1.0);
    let error = (values.len() > 1).then(|| deviation(values) / count.sqrt());
    Score { value, error, items: values.len() }
}

/// The standard deviation of a sample of two values or more.
pub fn deviation(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let middle = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|other| (other - middle).powi(2)).sum();
    (squares / (count - 1.0)).sqrt()
}

/// The mean over items of several tasks, with the pooled standard error that lm-evaluation-harness prints.
pub fn by_size(scores: &[Score]) -> Score {
    let items: usize = scores.iter().map(|score| score.items).sum();
    let count = items as f64;
    let value = scores.iter().map(|score| score.value * score.items as f64).sum::<f64>() / count.max(1.0);
    let variance: Option<f64> = scores
        .iter()
        .map(|score| score.error.map(|error| (score.items as f64 - 1.0) * error * error * score.items as f64))
        .sum();
    let error = variance.filter(|_| items > scores.len());
    let error = error.map(|sum| (sum / (count - scores.len() as f64) / count).sqrt());
    Score { value, error, items }
}

/// The sum of scores with weights; the errors are independent.
pub fn weighted(scores: &[(f64, Score)]) -> Score {
    let value = scores.iter().map(|(weight, score)| weight * score.value).sum();
    let variance: Option<f64> =
        scores.iter().map(|(weight, score)| score.error.map(|error| (weight * error).powi(2))).sum();
    let items = scores.iter().map(|(_, score)| score.items).sum();
    Score { value, error: variance.map(f64::sqrt), items }
}

/// The mean of scores.
pub fn mean_of(scores: &[Score]) -> Score {
    let weight = 1.0 / scores.len().max(1) as f64;
    weighted(&scores.iter().map(|score| (weight, *score)).collect::<Vec<_>>())
}

/// The mean F1 of the classes 0 and 1, from pairs of gold and answer; an answer of neither class counts for none. The
/// standard error is that of bootstrap samples.
pub fn pooled_f1(pairs: &[(usize, Option<usize>)], seed: u64) -> Score {
    let value = f1(pairs.iter().copied());
    let mut random = Rng::new(seed, 0);
    let samples: Vec<f64> = (0..F1_SAMPLES)
        .map(|_| f1((0..pairs.len()).map(|_| pairs[random.below(pairs.len() as u64) as usize])))
        .collect();
    let error = (pairs.len() > 1).then(|| deviation(&samples));
    Score { value, error, items: pairs.len() }
}

const F1_SAMPLES: usize = 200;

fn f1(pairs: impl Iterator<Item = (usize, Option<usize>)>) -> f64 {
    let (mut gold, mut answered, mut right) = ([0.0; 2], [0.0; 2], [0.0; 2]);
    for (own, answer) in pairs {
        gold[own.min(1)] += 1.0;
        if let Some(answer) = answer.filter(|answer| *answer < 2) {
            answered[answer] += 1.0;
            right[answer] += f64::from(u8::from(answer == own));
        }
    }
    // Of a class without right answers the F1 is 0.
    let of =
        |class: usize| if right[class] == 0.0 { 0.0 } else { 2.0 * right[class] / (gold[class] + answered[class]) };
    f64::midpoint(of(0), of(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_take_the_first_of_equal_values_and_count_code_points() {
        assert_eq!(pick(&[-2.0, -1.0, -1.0]), 1);
        let choices = ["لا".to_owned(), "نعم".to_owned()];
        // By bytes (4 and 6) and by code points (2 and 3) these are the same; a Latin letter is one byte.
        assert_eq!(pick_normalized(&[-2.1, -3.0], &choices), 1);
        let mixed = ["ab".to_owned(), "لا".to_owned()];
        assert_eq!(pick_normalized(&[-2.0, -3.0], &mixed), 0, "bytes would pick the second: -1 against -0.75");
    }

    #[test]
    fn answers_are_found_in_the_first_line() {
        let letters = |text: &str| extract(Extract::Letters, text);
        assert_eq!(letters(" D\n\nسؤال : A"), "D");
        assert_eq!(letters("B. BA"), "AB");
        assert_eq!(letters("لا أدري"), "");
        let word = |text: &str| extract(Extract::YesNo, text);
        assert_eq!(word("نعم، لا شك"), "نعم");
        assert_eq!(word("الإسلام نعم"), "لا", "inside of a word too, as the harness does");
        assert_eq!(word("ربما\nنعم"), "");
    }

    #[test]
    fn errors_of_means_are_those_of_the_sample() {
        let score = mean(&[1.0, 0.0, 1.0, 1.0]);
        assert_eq!((score.value, score.items), (0.75, 4));
        assert!((score.error.unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(mean(&[1.0]).error, None);
        let both = by_size(&[mean(&[1.0, 0.0, 1.0, 1.0]), mean(&[0.0, 0.0])]);
        assert_eq!((both.value, both.items), (0.5, 6));
        assert!((both.error.unwrap() - (3.0 * 0.0625 * 4.0 / 4.0f64 / 6.0).sqrt()).abs() < 1e-12);
        let equal = mean_of(&[mean(&[1.0, 0.0, 1.0, 1.0]), mean(&[0.0, 0.0])]);
        assert!((equal.value - 0.375).abs() < 1e-12 && (equal.error.unwrap() - 0.125).abs() < 1e-12);
    }

    #[test]
    fn f1_is_the_mean_of_both_classes() {
        // Class 0: 2 gold, 2 answered, 1 right: 0.5. Class 1: 2 gold, 1 answered, 1 right: 2/3.
        let pairs = [(0, Some(0)), (0, None), (1, Some(1)), (1, Some(0))];
        let score = pooled_f1(&pairs, 1);
        assert!((score.value - (0.5 + 2.0 / 3.0) / 2.0).abs() < 1e-12, "{score:?}");
        assert!(score.error.is_some_and(|error| error > 0.05 && error < 0.5), "{score:?}");
        assert_eq!(score, pooled_f1(&pairs, 1));
    }
}
