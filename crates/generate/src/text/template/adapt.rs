//! Changes a conversation to what its template can render, so that no text is lost: content parts become text, and a
//! system text that the template has no place for goes before the first user turn.

use serde_json::{Map, Value};

use super::{ChatInput, ChatTemplate};
use crate::text::error::{Result, TextError};
use crate::text::{GuardedText, Tokenizer};

/// A conversation that the template renders whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapted {
    /// The messages to render. Their contents are texts.
    pub messages: Vec<Value>,
    /// Whether the template has no system role, and the system text was put before the text of the first user turn.
    pub system_in_user: bool,
    /// Number of messages that are gone from the start because their text is now in the first user turn.
    pub removed: usize,
}

/// How a template renders messages of one role.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Renders,
    /// It raises an error, or leaves the text out.
    Refuses,
}

impl ChatTemplate {
    /// The messages as this template can render them:
    /// - `content` given as parts (`[{"type": "text", "text": …}, …]`) becomes their joined text;
    /// - the role `developer` becomes `system` where only that is rendered;
    /// - system messages at the start of a conversation, where the template has no system role (it raises an error or
    ///   leaves the text out), go before the text of the first user turn, with an empty line between.
    ///
    /// # Errors
    /// A content part is not text.
    pub fn adapt(&self, messages: &[Value]) -> Result<Adapted> {
        let messages = messages.iter().enumerate().map(|(at, message)| joined(at, message));
        let mut messages = messages.collect::<Result<Vec<Value>>>()?;
        for message in &mut messages {
            if role(message) == "developer"
                && self.role("developer") == Role::Refuses
                && self.role("system") == Role::Renders
            {
                message["role"] = Value::from("system");
            }
        }
        let leading = messages.iter().take_while(|message| matches!(role(message), "system" | "developer")).count();
        let mut adapted = Adapted { messages, system_in_user: false, removed: 0 };
        let refused = |message: &Value| self.role(role(message)) == Role::Refuses;
        if leading == 0 || !adapted.messages[..leading].iter().any(refused) {
            return Ok(adapted);
        }
        if adapted.messages.get(leading).is_none_or(|message| role(message) != "user") {
            return Ok(adapted); // there is no turn to put it in: the template says what it expects
        }
        let mut texts: Vec<String> = adapted.messages.drain(..leading).map(|message| content(&message)).collect();
        texts.push(content(&adapted.messages[0]));
        texts.retain(|text| !text.trim().is_empty());
        adapted.messages[0]["content"] = Value::from(texts.join("\n\n"));
        adapted.system_in_user = true;
        adapted.removed = leading;
        Ok(adapted)
    }

    /// The ids of a conversation's prompt: adapted, rendered with the opening of the assistant's turn, and tokenized;
    /// special tokens that a user typed stay text. `kwargs` are further variables of the template.
    ///
    /// # Errors
    /// The template refuses the conversation, or a content part is not text.
    pub fn prompt(&self, messages: &[Value], kwargs: Map<String, Value>, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        self.prompt_with_tools(messages, Vec::new(), kwargs, tokenizer)
    }

    /// As [`ChatTemplate::prompt`], with tools (`{"type": "function", "function": …}`) for the template.
    ///
    /// # Errors
    /// As [`ChatTemplate::prompt`].
    pub fn prompt_with_tools(
        &self,
        messages: &[Value],
        tools: Vec<Value>,
        kwargs: Map<String, Value>,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>> {
        tokenizer.encode_guarded(&self.prompt_text(messages, tools, kwargs, tokenizer)?)
    }

    /// The text of such a prompt, with guards at special tokens that users typed.
    ///
    /// # Errors
    /// As [`ChatTemplate::prompt`].
    pub fn prompt_text(
        &self,
        messages: &[Value],
        tools: Vec<Value>,
        kwargs: Map<String, Value>,
        tokenizer: &Tokenizer,
    ) -> Result<GuardedText> {
        let tools = (!tools.is_empty()).then_some(tools);
        let input = ChatInput { kwargs, tools, ..ChatInput::new(self.adapt(messages)?.messages) };
        self.render_guarded(&input, tokenizer)
    }

    /// Whether a conversation of this role and a user turn shows the text of both.
    fn role(&self, role: &str) -> Role {
        let marker = "\u{F8F2}role\u{F8F3}";
        let with = ChatInput::from_pairs([(role, marker), ("user", "x")]);
        let without = ChatInput::from_pairs([("user", "x")]);
        match self.render(&with) {
            Ok(text) if text.contains(marker) => Role::Renders,
            // A template that fails without the message too says nothing about its role.
            _ if self.render(&without).is_err() => Role::Renders,
            _ => Role::Refuses,
        }
    }
}

fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

fn content(message: &Value) -> String {
    message.get("content").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The message with its content parts joined to one text.
fn joined(at: usize, message: &Value) -> Result<Value> {
    let Some(Value::Array(parts)) = message.get("content") else { return Ok(message.clone()) };
    let text = join_parts(parts).map_err(|(part, got)| TextError::ContentPart { message: at, part, got })?;
    let mut message = message.clone();
    message["content"] = Value::from(text);
    Ok(message)
}

/// The joined text of content parts: texts, or objects of the type `text`, `input_text` or `output_text`.
///
/// # Errors
/// The number of the first part that is something else, and what it is.
pub fn join_parts(parts: &[Value]) -> std::result::Result<String, (usize, String)> {
    let text = |(at, part): (usize, &Value)| {
        let kind = part.get("type").and_then(Value::as_str);
        match (part, kind) {
            (Value::String(text), _) => Ok(text.clone()),
            (_, None | Some("text" | "input_text" | "output_text")) => {
                let text = part.get("text").and_then(Value::as_str).map(str::to_owned);
                text.ok_or_else(|| (at, "a part without text".to_owned()))
            }
            (_, Some(kind)) => Err((at, format!("a part of the type {kind:?}"))),
        }
    };
    parts.iter().enumerate().map(text).collect()
}
