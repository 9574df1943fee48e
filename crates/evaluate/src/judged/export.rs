//! Answers in the layouts that the original judges read.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::answers::Answered;
use super::file_part;
use crate::{EvalError, Result};

/// Whose layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// FastChat's `llm_judge`: `question.jsonl` and `model_answer/MODEL.jsonl`.
    FastChat,
    /// AlpacaEval's `model_outputs`: a JSON list.
    AlpacaEval,
    /// LLMZoo's evaluation: `questions.jsonl` and `answer_MODEL.jsonl`.
    LlmZoo,
    /// A JSON list of prompts and responses with their categories, for classifiers of safety.
    BeaverTails,
}

fn write(path: PathBuf, text: &str) -> Result<PathBuf> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| EvalError::io("create", folder, error))?;
    }
    std::fs::write(&path, text).map_err(|error| EvalError::io("write", &path, error))?;
    Ok(path)
}

fn lines(values: impl Iterator<Item = Value>) -> String {
    values.map(|value| format!("{value}\n")).collect()
}

fn list(values: impl Iterator<Item = Value>) -> String {
    format!("{:#}\n", Value::Array(values.collect()))
}

/// Writes answers into a folder, and returns the files.
///
/// # Errors
/// The layout has one turn and the answers two, or a file cannot be written.
pub fn write_answers(layout: Layout, answers: &[Answered], folder: &Path) -> Result<Vec<PathBuf>> {
    let two = answers.iter().find(|one| one.asked.turns.len() > 1).filter(|_| layout != Layout::FastChat);
    if let Some(one) = two {
        let what = format!("question {}", one.asked.id);
        return Err(EvalError::unexpected(what, "one turn, as this layout has", "two", "export with --for fastchat"));
    }
    let model = answers.first().map_or("model", |one| one.model.as_str());
    let file = file_part(model);
    let question = |one: &Answered| {
        let mut question = json!({"question_id": one.asked.id, "category": one.asked.category,
            "turns": one.asked.turns});
        if !one.asked.reference.is_empty() {
            question["reference"] = json!(one.asked.reference);
        }
        question
    };
    match layout {
        Layout::FastChat => {
            // FastChat orders its files by the question's id and needs a time, which nothing depends on.
            let answer = |one: &Answered| {
                json!({"question_id": one.asked.id, "answer_id": one.answer_id(), "model_id": one.model,
                    "choices": [{"index": 0, "turns": one.answers}], "tstamp": 0.0})
            };
            Ok(vec![
                write(folder.join("question.jsonl"), &lines(answers.iter().map(question)))?,
                write(folder.join(format!("model_answer/{file}.jsonl")), &lines(answers.iter().map(answer)))?,
            ])
        }
        Layout::AlpacaEval => {
            let output = |one: &Answered| {
                let dataset = one.asked.row.get("dataset").cloned().unwrap_or_else(|| json!(one.asked.category));
                json!({"dataset": dataset, "instruction": one.asked.turns[0], "output": one.answers[0],
                    "generator": one.model})
            };
            Ok(vec![write(folder.join("model_outputs.json"), &list(answers.iter().map(output)))?])
        }
        Layout::LlmZoo => {
            let question = |one: &Answered| {
                json!({"question_id": one.asked.id, "text": one.asked.turns[0], "category": one.asked.category,
                    "lang": "ar"})
            };
            let answer = |one: &Answered| {
                json!({"answer_id": one.answer_id(), "model_id": one.model, "question_id": one.asked.id,
                    "text": one.answers[0]})
            };
            Ok(vec![
                write(folder.join("questions.jsonl"), &lines(answers.iter().map(question)))?,
                write(folder.join(format!("answer_{file}.jsonl")), &lines(answers.iter().map(answer)))?,
            ])
        }
        Layout::BeaverTails => {
            let response = |one: &Answered| {
                let mut entry = Map::new();
                entry.insert("prompt".into(), one.asked.turns[0].clone().into());
                entry.insert("response".into(), one.answers[0].clone().into());
                entry.insert("category".into(), one.asked.category.clone().into());
                if let Some(id) = one.asked.row.get("category_id") {
                    entry.insert("category_id".into(), id.clone());
                }
                Value::Object(entry)
            };
            Ok(vec![write(folder.join("responses.json"), &list(answers.iter().map(response)))?])
        }
    }
}
