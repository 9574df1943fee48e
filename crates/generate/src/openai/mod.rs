//! The parts of OpenAI's chat completions that the server and the browser share: messages with tool calls and results,
//! the functions that an answer may call, calls in the text of an answer, log-probabilities.
//!
//! Everything works on JSON values, so that each interface reads its own request. Rejected: typed requests, because a
//! server and a page report unknown fields differently.

mod format;
mod messages;
mod reader;
mod tools;

use serde_json::{Map, Value, json};

use crate::engine::{LARGEST_BIAS, TokenScore};
use crate::grammar::GrammarError;
use crate::text::{ChatTemplate, GuardedText, TextError, Tokenizer};
pub use format::Format;
pub use messages::{Calls, arguments, messages};
pub use reader::{Piece, Reader, deltas};
pub use tools::{Choice, Tool, Tools, plain_choice, tool_list};

/// Printed instead of minus infinity, which JSON does not have.
const LEAST_LOGPROB: f32 = -9999.0;

/// A field of a request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// The field, as `messages[1].tool_calls[0]`.
    pub field: String,
    /// What was expected, what was found, and what to do.
    pub message: String,
    /// A short name of the error for programs.
    pub code: Option<&'static str>,
}

impl RequestError {
    /// A field that is wrong.
    pub fn new(field: &str, message: impl Into<String>) -> RequestError {
        RequestError { field: field.to_string(), message: message.into(), code: None }
    }

    /// The same error with a code.
    pub fn with_code(self, code: &'static str) -> RequestError {
        RequestError { code: Some(code), ..self }
    }

    /// A field whose constraint cannot be used.
    pub fn grammar(field: &str, error: &GrammarError) -> RequestError {
        RequestError::new(field, format!("`{field}`: {error}")).with_code("invalid_grammar")
    }
}

/// The kind of a value, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The text of the prompt of a conversation that may have tools, and the form of tool calls that its template has.
/// `variables` are further ones of the template.
///
/// # Errors
/// The template refuses the conversation.
pub fn prompt(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    mut messages: Vec<Value>,
    tools: &Tools,
    variables: Map<String, Value>,
) -> Result<(GuardedText, Format), TextError> {
    let format = Format::of(template.source());
    let mut definitions = tools.definitions();
    if format == Format::Described {
        messages = Format::describe(messages, &definitions);
        definitions.clear();
    }
    Ok((template.prompt_text(&messages, definitions, variables, tokenizer)?, format))
}

/// The bytes of one token, and its text if they are UTF-8 alone.
pub fn token_text(tokenizer: &Tokenizer, id: u32) -> (Vec<u8>, Option<String>) {
    // Added tokens stand for themselves.
    let bytes = tokenizer.token_bytes(id).or_else(|| tokenizer.token(id).map(String::into_bytes)).unwrap_or_default();
    let text = String::from_utf8(bytes.clone()).ok();
    (bytes, text)
}

/// A log-probability as JSON; equal ones are printed alike.
pub fn logprob(value: f32) -> Value {
    json!(if value.is_finite() { value } else { LEAST_LOGPROB })
}

/// An entry of `logprobs.content` of a chat.
pub fn chat_logprob(tokenizer: &Tokenizer, score: &TokenScore) -> Value {
    let entry = |id: u32, value: f32| {
        let (bytes, text) = token_text(tokenizer, id);
        let text = text.unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned());
        json!({"token": text, "logprob": logprob(value), "bytes": bytes})
    };
    let mut content = entry(score.id, score.logprob);
    content["top_logprobs"] = score.top.iter().map(|&(id, value)| entry(id, value)).collect();
    content
}

/// The biases of `logit_bias`: token ids to numbers from -100 to 100, where ±100 stand for "always" and "never".
///
/// # Errors
/// A key is no token of the vocabulary, or a number is out of range.
pub fn logit_bias(map: &Map<String, Value>, vocabulary: usize) -> Result<Vec<(u32, f32)>, RequestError> {
    let entry = |(id, value): (&String, &Value)| {
        let id = id.parse().ok().filter(|&id: &u32| (id as usize) < vocabulary)?;
        let value = value.as_f64().filter(|value| (-100.0..=100.0).contains(value))? as f32;
        Some((id, if value.abs() == 100.0 { value.signum() * LARGEST_BIAS } else { value }))
    };
    map.iter().map(entry).collect::<Option<_>>().ok_or_else(|| {
        let message = format!("`logit_bias`: expected token ids below {vocabulary} and numbers from -100 to 100");
        RequestError::new("logit_bias", message)
    })
}
