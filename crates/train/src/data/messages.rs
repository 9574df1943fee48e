//! Messages: their roles, contents and marks, and what of a conversation can be trained.

use bayan_generate::text::join_parts;
use serde_json::{Map, Value, json};

use super::json::list_in_text;
use super::shapes::{Fields, Problem, field_names, kind, problem, required};
use super::{DropReason, Example};
use crate::error::shortened;

/// Reads a text, which becomes one message of `role`, or a list of messages.
pub(super) fn side(fields: &Fields, name: &str, role: &str) -> Result<Vec<Value>, Problem> {
    match required(fields, name)? {
        Value::String(text) => {
            match list_in_text(text).filter(|list| list.iter().all(|m| m.get("role").or(m.get("from")).is_some())) {
                Some(list) if !list.is_empty() => message_list(name, &Value::Array(list)),
                _ => Ok(vec![json!({"role": role, "content": text})]),
            }
        }
        Value::Object(message) => Ok(vec![message_of(name, &Value::Object(message.clone()))?]),
        list @ Value::Array(_) => message_list(name, list),
        other => problem(name, format!("expected text or a list of messages, got {}", kind(other))),
    }
}

/// Reads a list of {role, content} or {from, value}, or text that contains one as JSON.
pub(super) fn message_list(field: &str, value: &Value) -> Result<Vec<Value>, Problem> {
    let parsed = value.as_str().and_then(list_in_text);
    match value.as_array().or(parsed.as_ref()) {
        Some(list) if !list.is_empty() => {
            list.iter().enumerate().map(|(at, message)| message_of(&format!("{field}[{at}]"), message)).collect()
        }
        Some(_) => problem(field, "expected at least one message, got an empty list"),
        None => problem(field, format!("expected a list of messages, got {}", kind(value))),
    }
}

/// Maps the role names of data sets to those of chat templates.
fn role_of(name: &str) -> Option<&'static str> {
    Some(match name.to_lowercase().as_str() {
        "user" | "human" | "prompter" | "customer" => "user",
        "assistant" | "gpt" | "model" | "bot" | "chatgpt" | "bing" | "bard" | "function_call" => "assistant",
        "system" => "system",
        "developer" => "developer",
        "tool" | "function" | "observation" | "function_response" | "ipython" => "tool",
        _ => return None,
    })
}

/// Converts one message to the form that chat templates take. Fields that are null (tables fill them in) are dropped.
fn message_of(field: &str, value: &Value) -> Result<Value, Problem> {
    let Value::Object(message) = value else {
        return problem(field, format!("expected a message, got {}", kind(value)));
    };
    let get = |name: &str| message.get(name).filter(|v| !v.is_null());
    let Some(role) = get("role").or(get("from")) else {
        return problem(field, format!("expected role or from, got {}", field_names(message)));
    };
    let Some(role) = role.as_str().and_then(role_of) else {
        return problem(
            field,
            format!("expected a role such as user, assistant or system, got {}", shortened(&role.to_string(), 40)),
        );
    };
    let has_calls = get("tool_calls").is_some();
    let content = match get("content").or(get("value")) {
        Some(Value::String(text)) => Value::from(text.as_str()),
        Some(Value::Array(parts)) => match join_parts(parts) {
            Ok(text) => Value::from(text),
            Err((part, got)) => {
                return problem(&format!("{field}.content[{part}]"), format!("expected text, got {got}"));
            }
        },
        None if has_calls => Value::from(""),
        None => return problem(field, "expected content or value, got none"),
        Some(other) => return problem(field, format!("expected text as content, got {}", kind(other))),
    };
    let mut clean = Map::new();
    clean.insert("role".into(), role.into());
    clean.insert("content".into(), content);
    let read = |key: &str| matches!(key, "role" | "from" | "content" | "value") || TRAINED_FIELDS.contains(&key);
    clean.extend(message.iter().filter(|(key, v)| !v.is_null() && !read(key)).map(|(key, v)| (key.clone(), v.clone())));
    if !is_trained(field, message)? {
        if role != "assistant" {
            return Ok(Value::Object(clean)); // no other role is trained
        }
        clean.insert(UNTRAINED.into(), true.into());
    }
    Ok(Value::Object(clean))
}

/// Fields of a message that say whether it is trained: OpenAI's, and those of axolotl and others.
const TRAINED_FIELDS: [&str; 3] = ["weight", "train", "training"];

/// The key that marks an assistant's message as not trained, until [`Example::finished`] takes the mark.
const UNTRAINED: &str = "\0untrained";

/// Reads [`TRAINED_FIELDS`]: `weight` 0 or 1, `train` and `training` true or false.
fn is_trained(field: &str, message: &Fields) -> Result<bool, Problem> {
    let mut trained = true;
    for name in TRAINED_FIELDS {
        trained &= match message.get(name) {
            None | Some(Value::Null) => true,
            Some(Value::Bool(trained)) => *trained,
            Some(Value::Number(number)) if number.as_f64() == Some(0.0) => false,
            Some(Value::Number(number)) if number.as_f64() == Some(1.0) => true,
            Some(other) => {
                let got = shortened(&other.to_string(), 40);
                let expected = "expected 0 or false (not trained), or 1 or true (trained)";
                return problem(&format!("{field}.{name}"), format!("{expected}, got {got}"));
            }
        };
    }
    Ok(trained)
}

/// Takes the mark of a message that is not trained: whether it is trained.
fn take_trained(message: &mut Value) -> bool {
    message.as_object_mut().is_none_or(|message| message.remove(UNTRAINED).is_none())
}

pub(crate) fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

/// Whether a message is empty: no text, no content parts, no tool calls.
pub(super) fn is_empty(message: &Value) -> bool {
    let nothing = match message.get("content") {
        Some(Value::String(text)) => text.trim().is_empty(),
        Some(Value::Array(parts)) => parts.is_empty(),
        _ => true,
    };
    nothing && message.get("tool_calls").is_none()
}

impl Example {
    /// Drops what cannot be trained: examples with an empty question or answer, turns after the last answer, and with
    /// `drop_system` the system messages.
    pub(super) fn finished(self, drop_system: bool) -> Result<Self, DropReason> {
        let without_system = |messages: &mut Vec<Value>| {
            messages.retain(|m| !(drop_system && matches!(role(m), "system" | "developer")))
        };
        let check = |messages: &[Value]| {
            let empty = messages.iter().find(|m| is_empty(m) && !matches!(role(m), "tool" | "system" | "developer"));
            empty.map_or(Ok(()), |m| {
                Err(if role(m) == "assistant" { DropReason::EmptyAnswer } else { DropReason::EmptyPrompt })
            })
        };
        match self {
            Self::Chat { messages, tools, trained } => {
                let kept = |message: &Value| !(drop_system && matches!(role(message), "system" | "developer"));
                let (mut messages, mut trained): (Vec<Value>, Vec<bool>) = messages
                    .into_iter()
                    .zip(trained)
                    .map(|(mut message, trained)| {
                        let trained = take_trained(&mut message) && trained && role(&message) == "assistant";
                        (message, trained)
                    })
                    .filter(|(message, _)| kept(message))
                    .unzip();
                let Some(last) = trained.iter().rposition(|trained| *trained) else {
                    let answers = messages.iter().any(|message| role(message) == "assistant");
                    return Err(if answers { DropReason::AnswersUntrained } else { DropReason::NoAnswer });
                };
                messages.truncate(last + 1);
                trained.truncate(last + 1);
                check(&messages)?;
                Ok(Self::Chat { messages, tools, trained })
            }
            Self::Preference { mut prompt, mut chosen, mut rejected, tools } => {
                without_system(&mut prompt);
                prompt.iter_mut().for_each(|message| _ = take_trained(message));
                if !chosen.iter_mut().chain(&mut rejected).all(take_trained) {
                    return Err(DropReason::AnswersUntrained);
                }
                for answer in [&chosen, &rejected] {
                    if !answer.iter().any(|m| role(m) == "assistant") {
                        return Err(DropReason::NoAnswer);
                    }
                    check(answer)?;
                }
                check(&prompt)?;
                if prompt.is_empty() {
                    return Err(DropReason::EmptyPrompt);
                }
                if chosen == rejected {
                    return Err(DropReason::SameAnswers);
                }
                Ok(Self::Preference { prompt, chosen, rejected, tools })
            }
            text => Ok(text),
        }
    }
}
