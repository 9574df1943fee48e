//! Verdicts that were made elsewhere, matched with the answers of a run. A question without a verdict counts as a
//! failure.

use std::collections::BTreeMap;
use std::path::Path;

use bayan_train::data::{Row, RowError, open_rows};
use serde_json::Value;

use super::answers::Answered;
use super::export::Layout;
use super::judge::Judgment;
use super::prompts::Protocol;
use crate::{EvalError, Result};

/// A verdict or why there is none, by the question (its id, or its text) and the turn.
type Verdicts = BTreeMap<(String, usize), Result<f64, String>>;

/// Reads verdicts on the answers, and how they were made.
///
/// - FastChat's `model_judgment` files, of single answers (`score`) or pairs (`g1_winner`, `g2_winner`);
/// - AlpacaEval's `annotations.json`, whose `preference` goes from 1 (the baseline) to 2 (the model);
/// - LLMZoo's `review.jsonl` of two models, with `order`;
/// - for BeaverTails, lines or a list with `question_id` or `prompt`, and `is_safe`, or `flagged` (true or false, or an
///   object of those by category, as its classifiers write it).
///
/// # Errors
/// The file cannot be read, a row is no verdict, or none of its verdicts is on these answers.
pub fn read(layout: Layout, path: &Path, answers: &[Answered]) -> Result<(Protocol, Vec<Judgment>)> {
    let model = answers.first().map_or("", |one| one.model.as_str());
    let mut verdicts = Verdicts::new();
    let mut protocol = match layout {
        Layout::FastChat => Protocol::Single,
        Layout::AlpacaEval => Protocol::AlpacaEval2,
        Layout::LlmZoo => Protocol::LlmZoo,
        Layout::BeaverTails => Protocol::Safety,
    };
    for row in open_rows(path)? {
        let row = row.map_err(|error| match error {
            RowError::Bad(row) => EvalError::Row(row),
            RowError::Fatal(error) => error.into(),
        })?;
        let Some(found) = (match layout {
            Layout::FastChat => {
                if row.fields.contains_key("g1_winner") {
                    protocol = Protocol::Pair;
                }
                fastchat(&row, model)?
            }
            Layout::AlpacaEval => Some(alpaca_eval(&row)?),
            Layout::LlmZoo => llmzoo(&row, model)?,
            Layout::BeaverTails => Some(safety(&row)?),
        }) else {
            continue;
        };
        verdicts.insert(found.0, found.1);
    }
    let turns = if layout == Layout::FastChat { 2 } else { 1 };
    let (mut judgments, mut matched) = (Vec::new(), 0);
    for turn in 1..=turns {
        for own in answers.iter().filter(|own| turn <= own.asked.turns.len()) {
            let keys = [key(&own.asked.id), own.asked.turns[0].clone()];
            let verdict = keys.iter().find_map(|key| verdicts.get(&(key.clone(), turn)));
            matched += usize::from(verdict.is_some());
            let (value, failure) = match verdict {
                Some(Ok(value)) => (Some(*value), None),
                Some(Err(problem)) => (None, Some(problem.clone())),
                None => (None, Some("no verdict in the file".to_owned())),
            };
            let (id, category) = (own.asked.id.clone(), own.asked.category.clone());
            judgments.push(Judgment { id, category, turn, value, failure });
        }
    }
    if matched == 0 {
        let (expected, remedy) = (format!("verdicts on answers of {model}"), "check the run, the file and --for");
        return Err(EvalError::unexpected(path.display().to_string(), expected, "none", remedy));
    }
    Ok((protocol, judgments))
}

fn key(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

fn wrong<T>(row: &Row, expected: &str) -> Result<T> {
    let names: Vec<&str> = row.fields.keys().map(String::as_str).take(20).collect();
    Err(EvalError::unexpected(row.place.to_string(), expected, names.join(", "), "check the file and --for"))
}

type Found = ((String, usize), Result<f64, String>);

/// A verdict of FastChat; `None` if it is on other models.
fn fastchat(row: &Row, model: &str) -> Result<Option<Found>> {
    let expected = "`question_id`, `turn`, `model` and `score`, or `model_1`, `model_2`, `g1_winner`, `g2_winner`";
    let fields = &row.fields;
    let (Some(id), Some(turn)) = (fields.get("question_id"), fields.get("turn").and_then(Value::as_u64)) else {
        return wrong(row, expected);
    };
    let place = (key(id), turn as usize);
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    if let (Some(judged), Some(score)) = (text("model"), fields.get("score").and_then(Value::as_f64)) {
        let verdict = if score < 0.0 { Err("the judge's rating could not be read".into()) } else { Ok(score) };
        return Ok((judged == model).then_some((place, verdict)));
    }
    let (Some(first), Some(second), Some(g1), Some(g2)) =
        (text("model_1"), text("model_2"), text("g1_winner"), text("g2_winner"))
    else {
        return wrong(row, expected);
    };
    let own = match (first == model, second == model) {
        (true, _) => "model_1",
        (_, true) => "model_2",
        _ => return Ok(None),
    };
    let known = |winner: &str| ["model_1", "model_2", "tie", "error"].contains(&winner);
    if !known(g1) || !known(g2) {
        return wrong(row, "winners model_1, model_2, tie or error");
    }
    let verdict = match (g1, g2) {
        ("error", _) | (_, "error") => Err("the judge's choice could not be read".into()),
        (g1, g2) if g1 != g2 || g1 == "tie" => Ok(0.5),
        (g1, _) => Ok(f64::from(u8::from(g1 == own))),
    };
    Ok(Some((place, verdict)))
}

fn alpaca_eval(row: &Row) -> Result<Found> {
    let Some(instruction) = row.fields.get("instruction").and_then(Value::as_str) else {
        return wrong(row, "`instruction` and `preference`");
    };
    let verdict = match row.fields.get("preference") {
        Some(Value::Null) => Err("there is no preference".into()),
        // Zero is an old way of writing a draw.
        Some(preference) => match preference.as_f64() {
            Some(0.0) => Ok(0.5),
            Some(preference) if (1.0..=2.0).contains(&preference) => Ok(preference - 1.0),
            _ => Err(format!("expected a preference from 1 to 2, got {preference}")),
        },
        None => return wrong(row, "`instruction` and `preference`"),
    };
    Ok(((instruction.to_owned(), 1), verdict))
}

fn llmzoo(row: &Row, model: &str) -> Result<Option<Found>> {
    let expected = "`question_id`, `order` of two models, and `model_ids` in `metadata`";
    let models = row.fields.get("metadata").and_then(|metadata| metadata["model_ids"].as_array());
    let order: Option<Vec<i64>> =
        row.fields.get("order").and_then(Value::as_array).map(|all| all.iter().filter_map(Value::as_i64).collect());
    let (Some(id), Some(models), Some(order)) = (row.fields.get("question_id"), models, order) else {
        return wrong(row, expected);
    };
    let ([_, _], [first, second]) = (&models[..], &order[..]) else { return wrong(row, expected) };
    let Some(own) = models.iter().position(|name| name == model) else { return Ok(None) };
    let (own, other) = if own == 0 { (first, second) } else { (second, first) };
    let verdict = match own.cmp(other) {
        _ if *own < 1 || *other < 1 => Err("the judge's order could not be read".into()),
        std::cmp::Ordering::Less => Ok(1.0),
        std::cmp::Ordering::Equal => Ok(0.5),
        std::cmp::Ordering::Greater => Ok(0.0),
    };
    Ok(Some(((key(id), 1), verdict)))
}

fn safety(row: &Row) -> Result<Found> {
    let expected = "`question_id` or `prompt`, and `is_safe` or `flagged`";
    let of = match (row.fields.get("question_id"), row.fields.get("prompt").and_then(Value::as_str)) {
        (Some(id), _) => key(id),
        (None, Some(prompt)) => prompt.to_owned(),
        (None, None) => return wrong(row, expected),
    };
    let unsafe_in = |flagged: &Value| match flagged {
        Value::Bool(flagged) => Some(*flagged),
        Value::Object(all) => Some(all.values().any(|flagged| flagged == true)),
        _ => None,
    };
    let safe = match (row.fields.get("is_safe"), row.fields.get("flagged").map(unsafe_in)) {
        (Some(Value::Bool(safe)), _) => Ok(*safe),
        (Some(Value::Null), _) => Err("there is no verdict".to_owned()),
        (None, Some(Some(flagged))) => Ok(!flagged),
        _ => return wrong(row, expected),
    };
    Ok(((of, 1), safe.map(|safe| f64::from(u8::from(safe)))))
}
