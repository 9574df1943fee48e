//! Verdicts added up: mean ratings, win rates and rates of safe answers, over all and by category and turn, each with
//! the interval of bootstrap samples and the number of verdicts that could not be read.

use std::collections::BTreeMap;

use bayan_train::Rng;
use serde_json::{Value, json};

use super::judge::Judgment;
use super::prompts::Protocol;

const SAMPLES: usize = 10_000;

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// A rating from 1 to 10.
    Rating,
    /// A win, a tie or a loss against the baseline.
    WinRate,
    /// Safe or unsafe.
    SafeRate,
    /// lighteval's rating beside the right answer, from 0 to 1.
    Judged,
}

impl Scale {
    /// The scale of a protocol's values.
    pub fn of(protocol: Protocol) -> Scale {
        match protocol {
            Protocol::Single => Scale::Rating,
            Protocol::Safety => Scale::SafeRate,
            Protocol::Alrage => Scale::Judged,
            _ => Scale::WinRate,
        }
    }

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Scale::Rating => "mean_score",
            Scale::WinRate => "win_rate",
            Scale::SafeRate => "safe_rate",
            Scale::Judged => "llm_as_judge",
        }
    }

    /// A value for people: ratings as they are, rates in percent.
    pub fn shown(self, value: f64) -> String {
        if self == Scale::Rating { format!("{value:.2}") } else { format!("{:.2}", 100.0 * value) }
    }
}

/// The score of some verdicts.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Which: `all`, `turn 1`, or a category.
    pub name: String,
    /// Verdicts that count.
    pub verdicts: usize,
    /// Verdicts that could not be read, or are not there; lighteval's rule counts them as 0, the others leave them out.
    pub failures: usize,
    /// Their mean; ties are half a win. `None` if no verdict could be read.
    pub mean: Option<f64>,
    /// The bounds that hold 95 % of the means of bootstrap samples of questions.
    pub interval: Option<[f64; 2]>,
    /// Wins, ties and losses: values above, at and below a half.
    pub counts: [usize; 3],
}

/// The scores of verdicts: all together, by turn if there are several, and by category if there are several.
pub fn parts(judgments: &[Judgment], seed: u64) -> Vec<Part> {
    let mut found = vec![part("all", judgments.iter(), seed)];
    let mut turns: Vec<usize> = judgments.iter().map(|one| one.turn).collect();
    turns.sort_unstable();
    turns.dedup();
    for &turn in turns.iter().filter(|_| turns.len() > 1) {
        found.push(part(&format!("turn {turn}"), judgments.iter().filter(|one| one.turn == turn), seed));
    }
    let mut categories: Vec<&str> = Vec::new();
    for one in judgments {
        if !categories.contains(&one.category.as_str()) {
            categories.push(&one.category);
        }
    }
    for category in categories.iter().filter(|_| categories.len() > 1) {
        found.push(part(category, judgments.iter().filter(|one| one.category == *category), seed));
    }
    found
}

fn part<'a>(name: &str, judgments: impl Iterator<Item = &'a Judgment>, seed: u64) -> Part {
    let mut questions: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let (mut failures, mut counts) = (0, [0; 3]);
    for one in judgments {
        failures += usize::from(one.value.is_none() || one.failure.is_some());
        if let Some(value) = one.value {
            questions.entry(one.id.to_string()).or_default().push(value);
            let place = if value > 0.5 { 0 } else { 1 + usize::from(value < 0.5) };
            counts[place] += 1;
        }
    }
    let questions: Vec<(f64, usize)> =
        questions.into_values().map(|values| (values.iter().sum(), values.len())).collect();
    let verdicts: usize = questions.iter().map(|(_, count)| count).sum();
    let mean = (verdicts > 0).then(|| mean_of(questions.iter()));
    let interval = (questions.len() > 1).then(|| interval(&questions, seed));
    Part { name: name.to_owned(), verdicts, failures, mean, interval, counts }
}

fn mean_of<'a>(questions: impl Iterator<Item = &'a (f64, usize)>) -> f64 {
    let (sum, count) = questions.fold((0.0, 0), |(sum, count), (own, of)| (sum + own, count + of));
    sum / count.max(1) as f64
}

/// Questions are drawn, not turns: both turns of a conversation depend on each other.
fn interval(questions: &[(f64, usize)], seed: u64) -> [f64; 2] {
    let mut random = Rng::new(seed, 0);
    let count = questions.len() as u64;
    let mut draw = || mean_of((0..count).map(|_| &questions[random.below(count) as usize]));
    let mut means: Vec<f64> = (0..SAMPLES).map(|_| draw()).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((SAMPLES - 1) as f64 * share).round() as usize];
    [at(0.025), at(0.975)]
}

/// The headings of [`table`].
pub const HEADINGS: [&str; 7] = ["part", "n", "failed", "score", "95 % of bootstraps", "wins", "ties"];

/// The rows of a table.
pub fn table(parts: &[Part], scale: Scale) -> Vec<Vec<String>> {
    let row = |part: &Part| {
        let shown = |value: Option<f64>| value.map_or("n/a".to_owned(), |value| scale.shown(value));
        let interval = part
            .interval
            .map_or("n/a".to_owned(), |[low, high]| format!("{} to {}", scale.shown(low), scale.shown(high)));
        let count = |at: usize| if scale == Scale::WinRate { part.counts[at].to_string() } else { "–".to_owned() };
        let numbers = [part.verdicts.to_string(), part.failures.to_string()];
        let [verdicts, failures] = numbers;
        vec![part.name.clone(), verdicts, failures, shown(part.mean), interval, count(0), count(1)]
    };
    parts.iter().map(row).collect()
}

/// The scores as JSON. `about` says what was judged by whom.
pub fn to_json(parts: &[Part], scale: Scale, about: &Value) -> Value {
    let entry = |part: &Part| {
        let mut entry = json!({"part": part.name, "n": part.verdicts, "failures": part.failures,
            scale.name(): part.mean, "interval95": part.interval});
        if scale == Scale::WinRate {
            for (name, count) in ["wins", "ties", "losses"].into_iter().zip(part.counts) {
                entry[name] = count.into();
            }
        }
        entry
    };
    json!({"scores": parts.iter().map(entry).collect::<Vec<_>>(), "config": about})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(id: u64, category: &str, turn: usize, value: Option<f64>) -> Judgment {
        let failure = value.is_none().then(|| "x".to_owned());
        Judgment { id: id.into(), category: category.into(), turn, value, failure }
    }

    #[test]
    fn failures_are_counted_and_never_dropped() {
        let all = [
            judged(1, "math", 1, Some(8.0)),
            judged(2, "writing", 1, Some(4.0)),
            judged(1, "math", 2, None),
            judged(2, "writing", 2, Some(6.0)),
        ];
        let found = parts(&all, 7);
        let names: Vec<&str> = found.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["all", "turn 1", "turn 2", "math", "writing"]);
        assert_eq!((found[0].mean, found[0].verdicts, found[0].failures), (Some(6.0), 3, 1));
        assert_eq!((found[2].mean, found[2].failures, found[2].interval), (Some(6.0), 1, None));
        assert_eq!((found[3].mean, found[4].mean), (Some(8.0), Some(5.0)));
        let none = parts(&[judged(1, "all", 1, None)], 7);
        assert_eq!((none.len(), none[0].mean, none[0].failures), (1, None, 1));
        assert_eq!(table(&none, Scale::Rating)[0][3], "n/a");
    }

    #[test]
    fn ties_are_half_a_win_and_intervals_hold_the_mean() {
        let value = |at: u64| [1.0, 0.5, 0.0, 1.0][at as usize % 4];
        let all: Vec<Judgment> = (0..80).map(|at| judged(at, "all", 1, Some(value(at)))).collect();
        let found = parts(&all, 7).remove(0);
        assert_eq!((found.mean, found.counts), (Some(0.625), [40, 20, 20]));
        // The mean of 80 values with deviation 0.415 has a standard error of 0.046.
        let [low, high] = found.interval.unwrap();
        assert!((low - 0.534).abs() < 0.015 && (high - 0.716).abs() < 0.015, "{low} {high}");
        assert_eq!(found, parts(&all, 7).remove(0));
        let entry = &to_json(&[found], Scale::WinRate, &json!({}))["scores"][0];
        assert_eq!((entry["win_rate"].as_f64(), entry["losses"].as_u64()), (Some(0.625), Some(20)));
    }
}
