//! The row shapes of published data sets, and how each is read.

use serde_json::{Map, Value, json};

use super::json::list_in_text;
use super::messages::{message_list, side};
use super::{DropReason, Example, preference};
use crate::error::shortened;
use crate::recipe::Method;

/// The shape of a row. `?` marks optional fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shape {
    /// `messages` [{role, content}], `tools`?
    Messages,
    /// `prompt`, `completion` (texts or lists of messages), `system`?
    PromptCompletion,
    /// `text`
    Text,
    /// `instruction`, `input`?, `output`, `system`?, `history`?
    Alpaca,
    /// Dolly: `instruction`, `context`?, `response`
    Dolly,
    /// `input`, `output`
    InputOutput,
    /// ms-swift: `query`, `response`, `system`?, `history`?
    Swift,
    /// `conversations` [{from, value}], `system`?, `tools`?
    ShareGpt,
    /// BARKA: `translated_instruction` or `translated_question`, and `translated_answer`.
    BarkaTranslated,
    /// BARKA's intermediate sets: `ift_instruction`, `ift_answer`.
    BarkaIft,
    /// `question`, `answer` (or `question_turn1`, `answer_turn1`), then `question_turn2`, `answer_turn2`, …
    QuestionAnswer,
    /// Aya: `inputs`, `targets`.
    Aya,
    /// `prompt`?, `chosen`, `rejected`: texts or lists of messages.
    Preference,
    /// `instruction`, `input`?, `chosen`, `rejected`
    PreferenceAlpaca,
    /// `conversations`, `chosen` {from, value}, `rejected` {from, value}
    PreferenceShareGpt,
    /// BeaverTails and PKU-SafeRLHF: `prompt`, `response_0`, `response_1`, `better_response_id`
    BeaverTails,
}

/// Our names in a `--columns` map.
pub const COLUMN_NAMES: [&str; 16] = [
    "messages",
    "conversations",
    "prompt",
    "response",
    "completion",
    "text",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "tools",
    "question",
    "answer",
    "chosen",
    "rejected",
];

/// The field name that shapes use for a column: `response` is an alias of `completion`.
pub(super) fn canonical(name: &str) -> &str {
    if name == "response" { "completion" } else { name }
}

/// A problem with a field of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub(super) field: String,
    pub(super) problem: String,
}

pub(super) fn problem<T>(field: &str, problem: impl Into<String>) -> Result<T, Problem> {
    Err(Problem { field: field.to_owned(), problem: problem.into() })
}

pub(super) type Fields = Map<String, Value>;

/// The row's field names for an error message: the first fifteen.
pub(super) fn field_names(fields: &Fields) -> String {
    let names: Vec<String> = fields.keys().take(15).map(|name| shortened(name, 40)).collect();
    let more = if fields.len() > 15 { ", …" } else { "" };
    if names.is_empty() { "no fields".to_owned() } else { format!("the fields {}{more}", names.join(", ")) }
}

impl Shape {
    /// Detects the shape of a row for a training method.
    pub(super) fn detect(fields: &Fields, method: Method) -> Result<Self, String> {
        let has = |name: &str| fields.get(name).is_some_and(|v| !v.is_null());
        let preference = match () {
            () if has("response_0") && has("response_1") => Some(Self::BeaverTails),
            () if !(has("chosen") && has("rejected")) => None,
            () if has("conversations") => Some(Self::PreferenceShareGpt),
            () if has("instruction") => Some(Self::PreferenceAlpaca),
            () => Some(Self::Preference),
        };
        let sft = match () {
            () if has("messages") => Some(Self::Messages),
            () if has("conversations") => Some(Self::ShareGpt),
            () if has("instruction") && has("output") => Some(Self::Alpaca),
            () if has("instruction") && has("response") => Some(Self::Dolly),
            () if has("query") && has("response") => Some(Self::Swift),
            () if (has("translated_instruction") || has("translated_question")) && has("translated_answer") => {
                Some(Self::BarkaTranslated)
            }
            () if has("ift_instruction") && has("ift_answer") => Some(Self::BarkaIft),
            () if has("question") && has("answer") || has("question_turn1") && has("answer_turn1") => {
                Some(Self::QuestionAnswer)
            }
            () if has("inputs") && has("targets") => Some(Self::Aya),
            () if has("prompt") && (has("completion") || has("response")) => Some(Self::PromptCompletion),
            () if has("text") => Some(Self::Text),
            () if has("input") && has("output") => Some(Self::InputOutput),
            () => None,
        };
        let there = field_names(fields);
        match (method, preference, sft) {
            (Method::Dpo, Some(shape), _) => Ok(shape),
            (Method::Dpo, None, Some(_)) => {
                Err(format!("{there}, which have no chosen and rejected answers; use method sft for such data"))
            }
            (Method::Sft, None, Some(shape)) => Ok(shape),
            (Method::Sft, Some(_), _) => Err(format!(
                "{there}, which are preferences; use method dpo, or --columns prompt=prompt,response=chosen to learn the chosen answers"
            )),
            (_, None, None) => Err(there),
        }
    }

    /// Reads one row. The inner error is the reason why a valid row is dropped.
    pub(super) fn read(self, fields: &Fields) -> Result<Result<Example, DropReason>, Problem> {
        let tools = tools(fields)?;
        let chat = |messages: Vec<Value>, train_from: usize| {
            let trained = (0..messages.len()).map(|at| at >= train_from).collect();
            Ok(Ok(Example::Chat { messages, tools: tools.clone(), trained }))
        };
        let mut messages: Vec<Value> = system(fields)?.into_iter().collect();
        match self {
            Self::Text => {
                let text = required_text(fields, "text")?;
                return Ok(if text.trim().is_empty() {
                    Err(DropReason::EmptyText)
                } else {
                    Ok(Example::Text(text.to_owned()))
                });
            }
            Self::Messages => messages.extend(message_list("messages", required(fields, "messages")?)?),
            Self::ShareGpt => messages.extend(message_list("conversations", required(fields, "conversations")?)?),
            Self::Alpaca => {
                messages.extend(history(fields)?);
                messages.push(user(&instruction(fields)?));
                messages.push(assistant(required_text(fields, "output")?));
            }
            Self::Dolly => {
                messages.push(user(&instruction(fields)?));
                messages.push(assistant(required_text(fields, "response")?));
            }
            Self::InputOutput => messages.extend(pair(fields, "input", "output")?),
            Self::Swift => {
                messages.extend(history(fields)?);
                messages.extend(pair(fields, "query", "response")?);
            }
            Self::BarkaTranslated => {
                let field = if is_there(fields, "translated_instruction") {
                    "translated_instruction"
                } else {
                    "translated_question"
                };
                return chat(pair(fields, field, "translated_answer")?, 0);
            }
            Self::BarkaIft => return chat(pair(fields, "ift_instruction", "ift_answer")?, 0),
            Self::Aya => return chat(pair(fields, "inputs", "targets")?, 0),
            Self::QuestionAnswer => messages.extend(turns(fields)?),
            Self::PromptCompletion => {
                if matches!(fields.get("label"), Some(Value::Bool(_))) {
                    return problem(
                        "label",
                        "expected no label; rows of good and bad answers without pairs cannot be trained on",
                    );
                }
                messages.extend(side(fields, "prompt", "user")?);
                let train_from = messages.len();
                let name = if is_there(fields, "completion") { "completion" } else { "response" };
                messages.extend(side(fields, name, "assistant")?);
                return chat(messages, train_from);
            }
            Self::Preference | Self::PreferenceAlpaca | Self::PreferenceShareGpt | Self::BeaverTails => {
                return preference::read(self, fields, messages, tools);
            }
        }
        chat(messages, 0)
    }
}

pub(super) fn is_there(fields: &Fields, name: &str) -> bool {
    fields.get(name).is_some_and(|v| !v.is_null())
}

pub(super) fn required<'a>(fields: &'a Fields, name: &str) -> Result<&'a Value, Problem> {
    match fields.get(name) {
        Some(value) if !value.is_null() => Ok(value),
        _ => problem(name, format!("expected it, as in the first row; there are {}", field_names(fields))),
    }
}

pub(super) fn required_text<'a>(fields: &'a Fields, name: &str) -> Result<&'a str, Problem> {
    required(fields, name)?
        .as_str()
        .map_or_else(|| problem(name, format!("expected text, got {}", kind(&fields[name]))), Ok)
}

/// Text that may be missing, null or empty.
fn optional_text<'a>(fields: &'a Fields, name: &str) -> Result<Option<&'a str>, Problem> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.trim().is_empty())),
        Some(other) => problem(name, format!("expected text, got {}", kind(other))),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(super) fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

pub(super) fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

fn system(fields: &Fields) -> Result<Option<Value>, Problem> {
    Ok(optional_text(fields, "system")?.map(|text| json!({"role": "system", "content": text})))
}

/// The row's tools: a list, or text that contains a JSON list.
fn tools(fields: &Fields) -> Result<Option<Vec<Value>>, Problem> {
    match fields.get("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list.clone()).filter(|list| !list.is_empty())),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match list_in_text(text) {
            Some(list) => Ok(Some(list).filter(|list| !list.is_empty())),
            None => problem("tools", "expected a list of JSON schemas, got text that is not one"),
        },
        Some(other) => problem("tools", format!("expected a list of JSON schemas, got {}", kind(other))),
    }
}

/// `instruction`, with `input` (in Dolly: `context`) on its own line.
pub(super) fn instruction(fields: &Fields) -> Result<String, Problem> {
    let instruction = required_text(fields, "instruction")?;
    let input = match optional_text(fields, "input")? {
        Some(input) => Some(input),
        None => optional_text(fields, "context")?,
    };
    Ok(match input {
        Some(input) if instruction.trim().is_empty() => input.to_owned(),
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction.to_owned(),
    })
}

/// Alpaca's earlier turns, [[question, answer], …]; their answers are trained too, as in LLaMA-Factory.
fn history(fields: &Fields) -> Result<Vec<Value>, Problem> {
    let list = match fields.get("history") {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(vec![]),
        Some(Value::String(text)) => list_in_text(text),
        Some(Value::Array(list)) => Some(list.clone()),
        Some(_) => None,
    };
    let Some(list) = list else { return problem("history", "expected a list of [question, answer] pairs") };
    let mut messages = Vec::with_capacity(2 * list.len());
    for (turn, pair) in list.iter().enumerate() {
        match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(question), Value::String(answer)]) => {
                messages.extend([user(question), assistant(answer)])
            }
            _ => return problem(&format!("history[{turn}]"), "expected a pair of texts, [question, answer]"),
        }
    }
    Ok(messages)
}

fn pair(fields: &Fields, question: &str, answer: &str) -> Result<Vec<Value>, Problem> {
    Ok(vec![user(required_text(fields, question)?), assistant(required_text(fields, answer)?)])
}

/// `question`, `answer`, `question_turn2`, `answer_turn2`, … up to the first turn without a question. Some data sets
/// call the first turn `question_turn1`.
fn turns(fields: &Fields) -> Result<Vec<Value>, Problem> {
    let (question, answer) =
        if fields.contains_key("question") { ("question", "answer") } else { ("question_turn1", "answer_turn1") };
    let mut messages = pair(fields, question, answer)?;
    for turn in 2.. {
        let Some(question) = optional_text(fields, &format!("question_turn{turn}"))? else { break };
        let name = format!("answer_turn{turn}");
        let Some(answer) = optional_text(fields, &name)? else {
            return problem(&name, format!("expected an answer, since there is a question_turn{turn}"));
        };
        messages.extend([user(question), assistant(answer)]);
    }
    Ok(messages)
}
