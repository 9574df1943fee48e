//! The scores of tasks and groups: lm-evaluation-harness's results file, and a table.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::metric::{Score, by_size, mean, mean_of, pooled_f1, weighted};
use crate::overlap;
use crate::run::Prepared;
use crate::samples::Sample;
use crate::task::{Combine, Group, Kind, Metric};

/// A task with its samples.
#[derive(Debug)]
pub struct Finished<'a> {
    /// The task, its items and settings.
    pub prepared: &'a Prepared,
    /// One sample for each item.
    pub samples: Vec<Sample>,
}

impl Finished<'_> {
    /// The score of each metric.
    pub fn scores(&self) -> Vec<(Metric, Score)> {
        let of = |(at, metric): (usize, &Metric)| {
            if metric.compares_texts() {
                let counts: Vec<&[f64]> = self.samples.iter().map(|sample| sample.counts[at].as_slice()).collect();
                return (*metric, overlap::total(*metric, &counts));
            }
            let values: Vec<f64> = self.samples.iter().map(|sample| sample.values[at]).collect();
            let error = mean(&values).error.filter(|_| *metric != Metric::F1);
            (*metric, Score { error, ..mean(&values) })
        };
        self.prepared.task.metrics.iter().enumerate().map(of).collect()
    }

    fn score(&self, metric: Metric) -> Option<Score> {
        self.scores().into_iter().find(|(own, _)| *own == metric).map(|(_, score)| score)
    }
}

/// The scores of a group: name of the metric, and score; also AceGPT's categories.
pub fn group_scores(group: &Group, finished: &[Finished<'_>], seed: u64) -> Vec<(String, Score)> {
    let member = |name: &str| {
        finished.iter().find(|one| one.prepared.task.protocol == group.protocol && one.prepared.task.name == name)
    };
    let members: Vec<&Finished<'_>> = group.tasks.iter().filter_map(|name| member(name)).collect();
    let mut found = Vec::new();
    for metric in group.metrics {
        let scores: Vec<Score> = members.iter().filter_map(|one| one.score(*metric)).collect();
        let name = metric.name().to_owned();
        match &group.combine {
            Combine::BySize => found.push((name, by_size(&scores))),
            Combine::Mean => found.push((name, mean_of(&scores))),
            Combine::PooledF1 => {
                let samples = members.iter().flat_map(|one| &one.samples);
                let pairs: Vec<(usize, Option<usize>)> =
                    samples.filter_map(|sample| Some((sample.gold?, sample.pick))).collect();
                found.push(("f1".into(), pooled_f1(&pairs, seed)));
            }
            Combine::Nested(categories) => {
                let mut all = Vec::new();
                for (category, subjects) in categories {
                    let parts: Vec<(f64, Score)> = subjects
                        .iter()
                        .flat_map(|tasks| {
                            let weight = 1.0 / subjects.len() as f64 / tasks.len() as f64;
                            tasks.iter().map(move |task| (weight, *task))
                        })
                        .filter_map(|(weight, task)| {
                            let one = members.iter().find(|one| one.prepared.task.name.ends_with(&format!(":{task}")));
                            Some((weight, one?.score(*metric)?))
                        })
                        .collect();
                    let score = weighted(&parts);
                    found.push((format!("{name} ({category})"), score));
                    all.push(score);
                }
                found.insert(0, (name, mean_of(&all)));
            }
        }
    }
    found
}

fn insert_score(entry: &mut Map<String, Value>, metric: &str, filter: &str, score: &Score) {
    entry.insert(format!("{metric},{filter}"), json!(score.value));
    let error = score.error.map_or(json!("N/A"), |error| json!(error));
    entry.insert(format!("{metric}_stderr,{filter}"), error);
}

/// The results file. Nothing in it depends on when or how fast the run was.
pub fn to_json(finished: &[Finished<'_>], groups: &[Group], about: &Value, seed: u64) -> Value {
    let mut results = Map::new();
    let (mut group_results, mut subtasks) = (Map::new(), Map::new());
    let (mut configs, mut versions, mut shots) = (Map::new(), Map::new(), Map::new());
    let (mut higher, mut counts, mut protocols) = (Map::new(), Map::new(), Map::new());
    let mut hashes = Map::new();
    for one in finished {
        let Prepared { task, items, rows, shots: examples, .. } = one.prepared;
        let name = task.full_name();
        let mut entry = Map::new();
        entry.insert("alias".into(), task.name.clone().into());
        for (metric, score) in one.scores() {
            insert_score(&mut entry, metric.name(), task.filter(), &score);
        }
        entry.insert("sample_len".into(), items.len().into());
        entry.insert("truncated".into(), one.samples.iter().filter(|sample| sample.truncated).count().into());
        results.insert(name.clone(), Value::Object(entry));
        let mut config = json!({"task": task.name, "dataset_path": task.source.dataset,
            "dataset_name": task.source.config, "test_split": task.source.split,
            "fewshot_split": task.source.shots_split, "target_delimiter": task.delimiter, "num_fewshot": examples});
        if let Kind::Generate { tokens, stop, .. } = task.kind {
            config["generation_kwargs"] = json!({"until": stop, "max_gen_toks": tokens, "do_sample": false});
        }
        configs.insert(name.clone(), config);
        versions.insert(name.clone(), one.prepared.rules.clone().into());
        shots.insert(name.clone(), json!(examples));
        let metrics: Map<String, Value> =
            task.metrics.iter().map(|m| (m.name().to_owned(), m.higher_is_better().into())).collect();
        higher.insert(name.clone(), Value::Object(metrics));
        counts.insert(name.clone(), json!({"original": rows, "effective": items.len()}));
        protocols.insert(name, task.protocol.name().into());
        hashes.extend(one.prepared.hashes.iter().map(|(file, hash)| (file.clone(), hash.clone().into())));
    }
    for group in groups {
        let name = group.full_name();
        let scores = group_scores(group, finished, seed);
        let mut entry = Map::new();
        entry.insert("alias".into(), group.name.clone().into());
        scores.iter().for_each(|(metric, score)| insert_score(&mut entry, metric, "none", score));
        if let Some((_, score)) = scores.first() {
            entry.insert("sample_len".into(), score.items.into());
        }
        group_results.insert(name.clone(), Value::Object(entry));
        let own = group.tasks.iter().map(|task| format!("{}/{task}", group.protocol.name()));
        subtasks.insert(name, own.collect());
    }
    json!({
        "results": results, "groups": group_results, "group_subtasks": subtasks, "configs": configs,
        "versions": versions, "n-shot": shots, "higher_is_better": higher, "n-samples": counts,
        "protocols": protocols, "data_sha256": hashes, "config": about,
    })
}

/// The rows of a table: name, protocol, examples, items, metric, score in percent with its standard error, and the
/// beginning of the SHA-256 of all files of the task.
pub fn table(finished: &[Finished<'_>], groups: &[Group], seed: u64) -> Vec<Vec<String>> {
    let percent = |metric: Option<Metric>, score: &Score| {
        let of = |value: f64| metric.map_or(100.0 * value, |metric| metric.percent(value));
        let error = score.error.map_or("n/a".to_owned(), |error| format!("{:.2}", of(error)));
        format!("{:.2} ± {error}", of(score.value))
    };
    let short = |hashes: &BTreeMap<String, String>| {
        let all: String = hashes.values().map(String::as_str).collect();
        crate::data::hash_text(&all)[..12].to_owned()
    };
    let mut rows = Vec::new();
    for group in groups {
        for (metric, score) in group_scores(group, finished, seed) {
            let own = finished.iter().filter(|one| {
                one.prepared.task.protocol == group.protocol && group.tasks.contains(&one.prepared.task.name)
            });
            let (mut hashes, mut shots, mut rules) = (BTreeMap::new(), 0, group.protocol.version().to_owned());
            for one in own {
                hashes.extend(one.prepared.hashes.clone());
                (shots, rules) = (one.prepared.shots, one.prepared.rules.clone());
            }
            rows.push(vec![
                group.full_name(),
                rules,
                shots.to_string(),
                score.items.to_string(),
                metric,
                percent(None, &score),
                short(&hashes),
            ]);
        }
    }
    for one in finished {
        for (metric, score) in one.scores() {
            rows.push(vec![
                one.prepared.task.full_name(),
                one.prepared.rules.clone(),
                one.prepared.shots.to_string(),
                score.items.to_string(),
                metric.name().into(),
                percent(Some(metric), &score),
                short(&one.prepared.hashes),
            ]);
        }
    }
    rows
}

/// The headings of [`table`].
pub const HEADINGS: [&str; 7] = ["task", "rules", "shots", "n", "metric", "% ± s.e.", "data sha256"];
