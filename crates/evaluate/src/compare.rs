//! Whether two runs of the same items differ by more than chance: a paired bootstrap and McNemar's exact test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bayan_train::Rng;
use serde_json::Value;

use crate::overlap;
use crate::samples::{self, Sample};
use crate::task::Metric;
use crate::{EvalError, Result};

/// Bootstrap samples of a comparison.
const SAMPLES: usize = 10_000;

/// Bootstrap samples where each needs sums of several counts.
const SAMPLES_OF_SUMS: usize = 2_000;

/// Two runs of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The task's full name.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// Number of items that both runs have.
    pub items: usize,
    /// The scores of both.
    pub scores: [f64; 2],
    /// The bounds of the difference (second minus first) that hold 95 % of the bootstrap samples.
    pub interval: [f64; 2],
    /// Items that only the first, and only the second run has right; of texts, those where it is better.
    pub only: [usize; 2],
    /// The probability of so uneven a split of those items, or a more uneven one, by chance.
    pub p: f64,
}

/// The two-sided p-value of McNemar's exact test, from the numbers of items that only one run has right.
pub fn mcnemar(first: usize, second: usize) -> f64 {
    let count = first + second;
    let fewer = first.min(second);
    // Terms of the binomial distribution with p = 1/2, by their logarithms: large counts have tiny terms.
    let mut log_term = -(count as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for k in 0..=fewer {
        sum += log_term.exp();
        log_term += ((count - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

/// The bounds that hold 95 % of the means of bootstrap samples of paired differences.
pub fn interval(differences: &[f64], seed: u64) -> [f64; 2] {
    if differences.is_empty() {
        return [0.0; 2];
    }
    let mut random = Rng::new(seed, 0);
    let count = differences.len();
    let mut means: Vec<f64> = (0..SAMPLES)
        .map(|_| (0..count).map(|_| differences[random.below(count as u64) as usize]).sum::<f64>() / count as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |part: f64| means[((SAMPLES - 1) as f64 * part).round() as usize];
    [at(0.025), at(0.975)]
}

/// The bounds that hold 95 % of the differences of scores in bootstrap samples of pairs, where scores follow from sums.
fn interval_of_sums(metric: Metric, counts: &[Vec<&[f64]>; 2], seed: u64) -> [f64; 2] {
    let mut random = Rng::new(seed, 0);
    let items = counts[0].len();
    let mut differences: Vec<f64> = (0..SAMPLES_OF_SUMS)
        .map(|_| {
            let drawn: Vec<usize> = (0..items).map(|_| random.below(items as u64) as usize).collect();
            let of = |run: usize| overlap::score(metric, &overlap::sums(&counts[run], &drawn));
            of(1) - of(0)
        })
        .collect();
    differences.sort_by(f64::total_cmp);
    let at = |part: f64| differences[((SAMPLES_OF_SUMS - 1) as f64 * part).round() as usize];
    [at(0.025), at(0.975)]
}

/// Compares samples of one task, which must be of the same prompts.
///
/// # Errors
/// No item is in both runs, or an item has another prompt or another answer.
pub fn pair(task: &str, metric: &str, runs: [&[Sample]; 2], seed: u64) -> Result<Comparison> {
    let second: BTreeMap<u64, &Sample> = runs[1].iter().map(|sample| (sample.number, sample)).collect();
    let known = Metric::by_name(metric);
    let higher_is_better = known.is_none_or(Metric::higher_is_better);
    let mut differences = Vec::new();
    let mut counts = [Vec::new(), Vec::new()];
    let (mut sums, mut only) = ([0.0; 2], [0; 2]);
    for one in runs[0] {
        let Some(other) = second.get(&one.number) else { continue };
        if one.prompt_hash != other.prompt_hash || one.gold != other.gold {
            let what = format!("item {} of {task}", one.number);
            let remedy = "compare runs on the same data with the same number of examples";
            return Err(EvalError::unexpected(what, "the same prompt and answer in both runs", "others", remedy));
        }
        let values = [one.values[0], other.values[0]];
        differences.push(values[1] - values[0]);
        (0..2).for_each(|run| sums[run] += values[run]);
        if values[0] != values[1] {
            only[usize::from((values[1] > values[0]) == higher_is_better)] += 1;
        }
        for (counts, sample) in counts.iter_mut().zip([one, other]) {
            counts.push(sample.counts.first().map_or(&[][..], Vec::as_slice));
        }
    }
    if differences.is_empty() {
        let remedy = "compare runs of the same tasks";
        return Err(EvalError::unexpected(task, "items that both runs have", "none", remedy));
    }
    let items = differences.len();
    let of_sums = known.filter(|_| counts[0].iter().all(|counts| counts.len() > 1));
    let (scores, interval) = match of_sums {
        Some(metric) => {
            let all: Vec<usize> = (0..items).collect();
            let scores = counts.each_ref().map(|counts| overlap::score(metric, &overlap::sums(counts, &all)));
            (scores, interval_of_sums(metric, &counts, seed))
        }
        None => (sums.map(|sum| sum / items as f64), interval(&differences, seed)),
    };
    let (task, metric, p) = (task.to_owned(), metric.to_owned(), mcnemar(only[0], only[1]));
    Ok(Comparison { task, metric, items, scores, interval, only, p })
}

/// From the full name of each task of a finished run to its file and the names of its metrics.
fn tasks_of(folder: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let path = folder.join("results.json");
    let text = std::fs::read_to_string(&path).map_err(|error| EvalError::io("read", &path, error))?;
    let results: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let Some(tasks) = results["higher_is_better"].as_object() else {
        let remedy = "name the folder of a finished `bayan eval run`";
        return Err(EvalError::unexpected(path.display().to_string(), "results", "another file", remedy));
    };
    let metrics = |value: &Value| value.as_object().into_iter().flat_map(|map| map.keys().cloned()).collect();
    Ok(tasks.iter().map(|(name, value)| (name.clone(), metrics(value))).collect())
}

/// Compares two folders of results: each task that both have, by each of its metrics, and all items together.
///
/// # Errors
/// A folder is no finished run, no task is in both, or their prompts differ.
pub fn folders(first: &Path, second: &Path, seed: u64) -> Result<Vec<Comparison>> {
    let (own, other) = (tasks_of(first)?, tasks_of(second)?);
    let common: BTreeSet<&String> = own.keys().filter(|task| other.contains_key(*task)).collect();
    let known = crate::suites::suites();
    let mut found = Vec::new();
    let mut all: BTreeMap<String, [Vec<Sample>; 2]> = BTreeMap::new();
    for name in &common {
        let Some(task) = known.iter().flat_map(|suite| &suite.tasks).find(|task| task.full_name() == **name) else {
            continue;
        };
        for metric in own[*name].iter().filter(|metric| other[*name].contains(metric)) {
            let read = |folder: &Path| samples::read(&samples::path(folder, task), &[metric.as_str()]);
            let runs = [read(first)?, read(second)?];
            found.push(pair(name, metric, [&runs[0], &runs[1]], seed)?);
            let together = all.entry(metric.clone()).or_default();
            for (together, run) in together.iter_mut().zip(runs) {
                // Numbers of items are made unique, so that items of different tasks do not meet.
                let offset = (found.len() as u64) << 40;
                together.extend(run.into_iter().map(|sample| Sample { number: sample.number + offset, ..sample }));
            }
        }
    }
    if found.is_empty() {
        let (expected, got) = ("a task that both runs have", "none");
        let what = format!("{} and {}", first.display(), second.display());
        return Err(EvalError::unexpected(what, expected, got, "compare runs of the same tasks"));
    }
    if common.len() > 1 {
        for (metric, runs) in &all {
            found.push(pair("all items", metric, [&runs[0], &runs[1]], seed)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(number: u64, value: f64) -> Sample {
        Sample {
            number,
            prompt_hash: format!("p{number}"),
            prompt_length: 1,
            gold: Some(0),
            pick: Some(0),
            choices: vec![],
            values: vec![value],
            counts: vec![vec![]],
            truncated: false,
        }
    }

    #[test]
    fn mcnemar_is_the_binomial_test() {
        assert_eq!(mcnemar(0, 0), 1.0);
        assert!((mcnemar(1, 5) - 2.0 * 7.0 / 64.0).abs() < 1e-12);
        assert!((mcnemar(5, 1) - mcnemar(1, 5)).abs() < 1e-15);
        assert_eq!(mcnemar(3, 3), 1.0);
        assert!(mcnemar(1000, 1300) < 1e-8 && mcnemar(1000, 1300) > 1e-12);
    }

    #[test]
    fn equal_runs_do_not_differ_and_better_ones_do() {
        let first: Vec<Sample> = (0..200).map(|i| sample(i, f64::from(u8::from(i % 2 == 0)))).collect();
        let same = pair("t", "acc", [&first, &first], 7).unwrap();
        assert_eq!((same.interval, same.p, same.only), ([0.0; 2], 1.0, [0, 0]));
        let better: Vec<Sample> = (0..200).map(|i| sample(i, f64::from(u8::from(i % 2 == 0 || i < 60)))).collect();
        let found = pair("t", "acc", [&first, &better], 7).unwrap();
        assert_eq!((found.scores, found.only), ([0.5, 0.65], [0, 30]));
        assert!(found.interval[0] > 0.09 && found.interval[1] < 0.21 && found.p < 1e-6, "{found:?}");
        assert_eq!(found, pair("t", "acc", [&first, &better], 7).unwrap());
    }

    /// Samples of answers whose metric is computed from counts.
    fn texts(metric: Metric, pairs: &[(&str, &str)]) -> Vec<Sample> {
        let of = |(number, &(answer, reference)): (usize, &(&str, &str))| {
            let counts = overlap::counts(metric, answer, reference);
            let value = overlap::score(metric, &counts);
            Sample { counts: vec![counts], ..sample(number as u64, value) }
        };
        pairs.iter().enumerate().map(of).collect()
    }

    #[test]
    fn texts_are_compared_by_the_score_of_all_of_them() {
        let reference = "ذهب الولد إلى المدرسة في الصباح الباكر";
        let (good, poor) = (("ذهب الولد إلى المدرسة في الصباح", reference), ("أكل القط السمكة", reference));
        let (first, second) = ([good, poor, good, poor], [good, good, good, poor]);
        for metric in [Metric::Bleu, Metric::Chrf, Metric::Ter] {
            let runs = [texts(metric, &first), texts(metric, &second)];
            let found = pair("t", metric.name(), [&runs[0], &runs[1]], 3).unwrap();
            for (score, run) in found.scores.iter().zip(&runs) {
                let counts: Vec<&[f64]> = run.iter().map(|sample| sample.counts[0].as_slice()).collect();
                assert_eq!(*score, overlap::total(metric, &counts).value, "{}", metric.name());
            }
            assert_eq!(found.only, [0, 1], "{}: the second run has one better text", metric.name());
            let better = found.scores[1] - found.scores[0];
            assert_eq!(better > 0.0, metric.higher_is_better(), "{}: {:?}", metric.name(), found.scores);
            assert!((found.interval[0]..=found.interval[1]).contains(&better), "{found:?}");
        }
    }

    #[test]
    fn other_prompts_are_refused() {
        let first = [sample(0, 1.0)];
        let second = [Sample { prompt_hash: "other".into(), ..sample(0, 1.0) }];
        assert!(pair("t", "acc", [&first, &second], 1).unwrap_err().to_string().contains("item 0 of t"));
        assert!(pair("t", "acc", [&first, &[sample(1, 1.0)]], 1).is_err());
    }
}
