//! One line for each item: what was asked, what each choice scored, and what was picked.
//!
//! The fields are those of lm-evaluation-harness's samples, and a few more. Scores are read back from these lines, so
//! that a resumed run and one that was never interrupted count the same.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use bayan_generate::Likelihood;
use serde_json::{Map, Value, json};

use crate::data::hash_text;
use crate::metric::{extract, pick, pick_normalized};
use crate::overlap;
use crate::run::Item;
use crate::task::{Extract, Metric, Task};
use crate::{EvalError, Result};

/// What later steps need of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The row's number in its split, from 0.
    pub number: u64,
    /// SHA-256 of the prompt.
    pub prompt_hash: String,
    /// Number of characters of the prompt.
    pub prompt_length: usize,
    /// The right choice.
    pub gold: Option<usize>,
    /// The picked choice, by the first metric.
    pub pick: Option<usize>,
    /// The text of each choice.
    pub choices: Vec<String>,
    /// The value of each metric of the task.
    pub values: Vec<f64>,
    /// What metrics that compare texts have counted, else nothing, for each metric of the task.
    pub counts: Vec<Vec<f64>>,
    /// Whether the prompt lost its beginning.
    pub truncated: bool,
}

/// The file of a task's samples.
pub fn path(folder: &Path, task: &Task) -> PathBuf {
    let name: String =
        task.full_name().chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    folder.join(format!("samples_{name}.jsonl"))
}

fn common(item: &Item) -> Map<String, Value> {
    let question = &item.question;
    let target = match question.gold {
        Some(gold) => json!(gold),
        None if question.choices.is_empty() => json!(question.answer),
        None => Value::Null,
    };
    let mut line = Map::new();
    line.insert("doc_id".into(), json!(item.number));
    line.insert("doc".into(), Value::Object(item.row.fields.clone()));
    line.insert("target".into(), target);
    line
}

fn hashes(line: &mut Map<String, Value>, item: &Item) {
    let doc = serde_json::to_string_pretty(&item.row.fields).unwrap_or_default();
    line.insert("doc_hash".into(), hash_text(&doc).into());
    line.insert("prompt_hash".into(), hash_text(&item.prompt).into());
    line.insert("prompt_length".into(), item.prompt.chars().count().into());
    line.insert("target_hash".into(), hash_text(&line["target"].to_string()).into());
}

/// The line of an item whose choices were scored. `tokens` are the numbers of scored tokens.
pub fn of_choices(task: &Task, item: &Item, found: &[Likelihood], tokens: &[usize], truncated: bool) -> String {
    let question = &item.question;
    let sums: Vec<f64> = found.iter().map(|likelihood| likelihood.sum).collect();
    let (plain, normalized) = (pick(&sums), pick_normalized(&sums, &question.choices));
    let picked = |metric: Metric| if metric == Metric::AccNorm { normalized } else { plain };
    let mut line = common(item);
    line.insert("arguments".into(), json!(item.pairs(task.delimiter)));
    let scored: Vec<Value> = found.iter().map(|likelihood| json!([likelihood.sum, likelihood.greedy])).collect();
    line.insert("resps".into(), scored.iter().map(|scored| json!([scored])).collect());
    line.insert("filtered_resps".into(), scored.into());
    line.insert("filter".into(), task.filter().into());
    line.insert("metrics".into(), task.metrics.iter().map(|metric| metric.name()).collect());
    hashes(&mut line, item);
    line.insert("choices".into(), json!(question.choices));
    line.insert("tokens".into(), json!(tokens));
    line.insert("gold".into(), json!(question.gold));
    line.insert("pick".into(), json!(picked(task.metrics[0])));
    line.insert("truncated".into(), truncated.into());
    for metric in task.metrics {
        let right = question.gold == Some(picked(*metric));
        line.insert(metric.name().into(), json!(if right { 1.0 } else { 0.0 }));
    }
    Value::Object(line).to_string()
}

/// The line of an item that was answered in text.
pub fn of_text(task: &Task, item: &Item, rule: Extract, response: &str, truncated: bool) -> String {
    let question = &item.question;
    let answer = extract(rule, response);
    let picked = question.choices.iter().position(|choice| *choice == answer);
    let mut line = common(item);
    line.insert("arguments".into(), json!([[item.prompt]]));
    line.insert("resps".into(), json!([[response]]));
    line.insert("filtered_resps".into(), json!([answer]));
    line.insert("filter".into(), task.filter().into());
    line.insert("metrics".into(), task.metrics.iter().map(|metric| metric.name()).collect());
    hashes(&mut line, item);
    line.insert("choices".into(), json!(question.choices));
    line.insert("gold".into(), json!(question.gold));
    line.insert("pick".into(), json!(picked));
    line.insert("truncated".into(), truncated.into());
    let right = picked.is_some() && picked == question.gold;
    let mut counted = Map::new();
    for &metric in task.metrics {
        let mut value = if right { 1.0 } else { 0.0 };
        if metric.compares_texts() {
            let counts = overlap::counts(metric, &answer, &question.answer);
            value = overlap::score(metric, &counts);
            counted.insert(metric.name().into(), json!(counts));
        }
        line.insert(metric.name().into(), json!(value));
    }
    if !counted.is_empty() {
        line.insert("counts".into(), counted.into());
    }
    Value::Object(line).to_string()
}

/// Reads a line back; `None` if it is no sample. `metrics` are the names of the values to read.
pub fn parse(line: &str, metrics: &[&str]) -> Option<Sample> {
    let line: Value = serde_json::from_str(line).ok()?;
    let index = |name: &str| line[name].as_u64().map(|index| index as usize);
    let counts = |name: &&str| match line["counts"][*name].as_array() {
        Some(counts) => counts.iter().map(Value::as_f64).collect(),
        None => Some(Vec::new()),
    };
    let texts = line["choices"].as_array()?.iter().map(|choice| choice.as_str().map(str::to_owned));
    Some(Sample {
        number: line["doc_id"].as_u64()?,
        prompt_hash: line["prompt_hash"].as_str()?.to_owned(),
        prompt_length: index("prompt_length")?,
        gold: index("gold"),
        pick: index("pick"),
        choices: texts.collect::<Option<_>>()?,
        values: metrics.iter().map(|metric| line[*metric].as_f64()).collect::<Option<_>>()?,
        counts: metrics.iter().map(counts).collect::<Option<_>>()?,
        truncated: line["truncated"].as_bool()?,
    })
}

/// Reads a file of samples.
///
/// # Errors
/// The file cannot be read, or a line is no sample.
pub fn read(path: &Path, metrics: &[&str]) -> Result<Vec<Sample>> {
    let file = fs::File::open(path).map_err(|error| EvalError::io("open", path, error))?;
    let lines = BufReader::new(file).lines().enumerate();
    lines
        .map(|(number, line)| {
            let line = line.map_err(|error| EvalError::io("read", path, error))?;
            parse(&line, metrics).ok_or_else(|| {
                let what = format!("{}: line {}", path.display(), number + 1);
                EvalError::unexpected(what, "a sample of `bayan eval run`", "another line", "run the task again")
            })
        })
        .collect()
}

/// The number of items in a file that need not be run again, when items are written `batch` at a time: those of whole
/// batches. The file is cut there.
///
/// # Errors
/// The file cannot be read or cut.
pub fn keep_whole_batches(path: &Path, batch: usize, total: usize) -> Result<usize> {
    let Ok(bytes) = fs::read(path) else { return Ok(0) };
    let ends: Vec<usize> = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    let kept = if ends.len() >= total { total } else { ends.len() / batch * batch };
    let length = if kept == 0 { 0 } else { ends[kept - 1] };
    let file = fs::OpenOptions::new().write(true).open(path).map_err(|error| EvalError::io("open", path, error))?;
    file.set_len(length as u64).map_err(|error| EvalError::io("cut", path, error))?;
    Ok(kept)
}

/// Appends lines.
///
/// # Errors
/// The file cannot be written.
pub fn append(path: &Path, lines: &[String]) -> Result<()> {
    let open = fs::OpenOptions::new().create(true).append(true).open(path);
    let mut file = open.map_err(|error| EvalError::io("open", path, error))?;
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    file.write_all(text.as_bytes()).map_err(|error| EvalError::io("write", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_batch_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.jsonl");
        assert_eq!(keep_whole_batches(&path, 2, 9).unwrap(), 0, "there is no file");
        fs::write(&path, "a\nb\nc\nd\ne\nhalf").unwrap();
        assert_eq!(keep_whole_batches(&path, 2, 9).unwrap(), 4);
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\nc\nd\n");
        fs::write(&path, "a\nb\nc\n").unwrap();
        assert_eq!(keep_whole_batches(&path, 2, 3).unwrap(), 3, "the last batch is not full");
    }
}
