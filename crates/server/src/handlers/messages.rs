//! Anthropic's `/v1/messages` and `/v1/messages/count_tokens`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use bayan_generate::openai::{Calls, Choice, Format, Piece, Reader, RequestError, Tool, Tools, kind, tool_list};
use bayan_generate::{FinishReason, Usage};
use serde_json::{Value, json};

use super::stream::{Chunks, Sent, respond};
use super::{App, Owner, collect_one, json as answer_json};
use crate::error::{AnthropicError, ApiError};
use crate::exchange::{Conversation, Ready, Spoken, call_id};
use crate::fields::Fields;
use crate::protocol::{Wanted, new_id};
use crate::worker::Reply;

/// Answers a conversation.
pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    request: Request,
) -> Result<Response, AnthropicError> {
    let mut fields = app.fields(request).await?;
    let adapter = app.check_model(&mut fields)?;
    fields.rename("stop_sequences", "stop");
    let mut wanted = Wanted::read(&mut fields, &app.about, &app.shared.limits)?;
    wanted.require_one_answer()?;
    wanted.require_tokens("max_tokens")?;
    let conversation = read(&mut fields)?;
    fields.without_effect(&["metadata", "service_tier", "container"]);
    let ready = conversation.ready(&app, fields, adapter, &mut wanted).await?;
    let Ready { prompt, stop, format, model, ignored } = ready;
    let tokens = prompt.len();
    let replies = app.submit(vec![(wanted.job(prompt, owner, 0), stop)])?;
    let id = new_id("msg").replacen('-', "_", 1);
    if wanted.stream {
        let reader = Reader::new(format);
        let chunks = Events { model, id, tokens, reader, format, open: None, blocks: 0, calls: false, last: None };
        return Ok(app.report(&ignored, respond(replies, 1, chunks)));
    }
    let (answer, usage) = collect_one(replies).await?;
    let spoken = Spoken::of(&answer, format);
    let mut content = Vec::new();
    if !spoken.text.is_empty() {
        content.push(json!({"type": "text", "text": spoken.text}));
    }
    for call in &spoken.calls {
        // A call that was cut has no object yet.
        let input: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        content.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input}));
    }
    let value = json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason(&usage, answer.stop.as_deref(), !spoken.calls.is_empty()),
        "stop_sequence": answer.stop,
        "usage": usage_json(&usage),
    });
    Ok(answer_json(&app, &ignored, value))
}

/// The number of tokens that a conversation's prompt has.
pub(crate) async fn count(State(app): State<Arc<App>>, request: Request) -> Result<Response, AnthropicError> {
    let mut fields = app.fields(request).await?;
    app.check_model(&mut fields)?;
    let conversation = read(&mut fields)?;
    let ignored = fields.ignored();
    let prepared = conversation.prepare(&app).await?;
    Ok(answer_json(&app, &ignored, json!({"input_tokens": prepared.prompt.len()})))
}

/// Takes the fields of the conversation.
fn read(fields: &mut Fields) -> Result<Conversation, ApiError> {
    fields.refuse("thinking", |value| value["type"] == "disabled")?;
    fields.refuse("mcp_servers", |value| value.as_array().is_some_and(Vec::is_empty))?;
    let list = tool_list(fields.take("tools").as_ref(), |place, tool| {
        if tool.get("type").is_some_and(|kind| !kind.is_null() && kind != "custom") {
            let message = format!("`{place}`: only functions of the client are supported, got type {}", tool["type"]);
            return Err(RequestError::new(place, message).with_code("unsupported"));
        }
        Tool::new(place, "input_schema", tool)
    })?;
    let choice = fields.object("tool_choice")?.unwrap_or_default();
    let name = choice.get("name").and_then(Value::as_str);
    let parallel = choice.get("disable_parallel_tool_use") != Some(&Value::Bool(true));
    let choice = match (choice.get("type").and_then(Value::as_str), name) {
        (None | Some("auto"), _) => Choice::Auto,
        (Some("any"), _) => Choice::Required,
        (Some("none"), _) => Choice::None,
        (Some("tool"), Some(name)) => Choice::Named(name.to_string()),
        _ => {
            let message = "`tool_choice.type`: expected auto, any, none, or tool with `name`";
            return Err(ApiError::field("tool_choice", message));
        }
    };
    let tools = Tools { list, choice, parallel }.checked()?;
    let mut messages = Vec::new();
    match fields.take("system") {
        None => {}
        Some(Value::String(text)) => messages.push(json!({"role": "system", "content": text})),
        Some(Value::Array(blocks)) => {
            let texts = blocks.iter().enumerate();
            let texts = texts.map(|(at, block)| text_block(&format!("system[{at}]"), block));
            let texts = texts.collect::<Result<Vec<&str>, ApiError>>()?;
            messages.push(json!({"role": "system", "content": texts.join("\n")}));
        }
        Some(other) => {
            let message = format!("`system`: expected a string or text blocks, got {}", kind(&other));
            return Err(ApiError::field("system", message));
        }
    }
    let list = match fields.take("messages") {
        Some(Value::Array(list)) if !list.is_empty() => list,
        _ => return Err(ApiError::field("messages", "`messages`: expected a list of at least one message")),
    };
    let mut calls = Calls::default();
    for (index, value) in list.iter().enumerate() {
        message(&format!("messages[{index}]"), value, &mut calls, &mut messages)?;
    }
    calls.closed("messages")?;
    if messages.last().is_some_and(|last| last["role"] == "assistant") {
        let message = "`messages`: an answer that is begun is not continued here; end with a message of the user";
        return Err(ApiError::field("messages", message).with_code("unsupported"));
    }
    Ok(Conversation { messages, tools, field: "messages", ..Default::default() })
}

fn text_block<'a>(place: &str, block: &'a Value) -> Result<&'a str, ApiError> {
    match (block["type"].as_str(), block["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text),
        _ => Err(ApiError::field(place, format!("`{place}`: only blocks of type text are supported here"))),
    }
}

/// Adds a message; results of tools become messages of their own before the user's text.
fn message(place: &str, value: &Value, calls: &mut Calls, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let wrong = |what: &str| ApiError::field(place, format!("`{place}`: {what}"));
    let role = value["role"].as_str().filter(|role| ["user", "assistant"].contains(role));
    let role = role.ok_or_else(|| wrong("`role`: expected user or assistant"))?;
    let blocks = match &value["content"] {
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        Value::Array(blocks) if !blocks.is_empty() => blocks.clone(),
        _ => return Err(wrong("`content`: expected a string or a list of blocks")),
    };
    let (mut texts, mut used) = (Vec::new(), Vec::new());
    for (at, block) in blocks.iter().enumerate() {
        let place = format!("{place}.content[{at}]");
        let wrong = |what: &str| ApiError::field(&place, format!("`{place}`: {what}"));
        let text = |name: &str| block[name].as_str().filter(|text| !text.is_empty());
        match (block["type"].as_str(), role) {
            (Some("text"), _) => texts.push(text_block(&place, block)?.to_string()),
            (Some("tool_use"), "assistant") => {
                let id = text("id").ok_or_else(|| wrong("`id` is missing"))?;
                let name = text("name").ok_or_else(|| wrong("`name` is missing"))?;
                let input = block.get("input").filter(|input| input.is_object());
                let input = input.ok_or_else(|| wrong("`input`: expected an object"))?;
                used.push(calls.call(&place, id, name, input.clone())?);
            }
            (Some("tool_result"), "user") => {
                let id = text("tool_use_id").ok_or_else(|| wrong("`tool_use_id` is missing"))?;
                let content = match block.get("content") {
                    None | Some(Value::Null) => String::new(),
                    Some(Value::String(text)) => text.clone(),
                    Some(Value::Array(parts)) => {
                        let texts = parts.iter().enumerate();
                        let texts = texts.map(|(part, block)| text_block(&format!("{place}.content[{part}]"), block));
                        texts.collect::<Result<Vec<&str>, ApiError>>()?.join("\n")
                    }
                    Some(_) => return Err(wrong("`content`: expected a string or text blocks")),
                };
                messages.push(calls.result(&place, id, content)?);
            }
            (Some("thinking" | "redacted_thinking"), "assistant") => {}
            _ => return Err(wrong("this type of block is not supported here").with_code("unsupported")),
        }
    }
    let results_only = role == "user" && texts.is_empty();
    calls.closed(place).or_else(|error| if role == "user" || used.is_empty() { Err(error) } else { Ok(()) })?;
    if !results_only {
        let mut message = json!({"role": role, "content": texts.join("\n")});
        if !used.is_empty() {
            message["tool_calls"] = used.into();
        }
        messages.push(message);
    }
    Ok(())
}

fn stop_reason(usage: &Usage, stop: Option<&str>, called: bool) -> &'static str {
    match usage.finish {
        FinishReason::Length | FinishReason::ContextFull => "max_tokens",
        _ if stop.is_some() => "stop_sequence",
        _ if called => "tool_use",
        _ => "end_turn",
    }
}

fn usage_json(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.generated_tokens,
    })
}

/// The events of a stream.
struct Events {
    model: String,
    id: String,
    /// Tokens of the prompt.
    tokens: usize,
    reader: Reader,
    format: Option<Format>,
    /// The kind of the block that is open.
    open: Option<&'static str>,
    /// Blocks so far, the open one included.
    blocks: usize,
    calls: bool,
    /// Why the answer ended.
    last: Option<(Usage, Option<String>)>,
}

impl Events {
    fn close(&mut self, sent: &mut Vec<Sent>) {
        if self.open.take().is_some() {
            sent.push(Sent::typed(json!({"type": "content_block_stop", "index": self.blocks - 1})));
        }
    }

    fn begin_block(&mut self, kind: &'static str, block: Value, sent: &mut Vec<Sent>) {
        self.close(sent);
        let event = json!({"type": "content_block_start", "index": self.blocks, "content_block": block});
        sent.push(Sent::typed(event));
        self.open = Some(kind);
        self.blocks += 1;
    }

    fn delta(&self, delta: Value) -> Sent {
        Sent::typed(json!({"type": "content_block_delta", "index": self.blocks.saturating_sub(1), "delta": delta}))
    }

    fn pieces(&mut self, pieces: Vec<Piece>) -> Vec<Sent> {
        let mut sent = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    if self.open != Some("text") {
                        self.begin_block("text", json!({"type": "text", "text": ""}), &mut sent);
                    }
                    sent.push(self.delta(json!({"type": "text_delta", "text": text})));
                }
                Piece::Call(name) => {
                    self.calls = true;
                    let block = json!({"type": "tool_use", "id": call_id(self.format), "name": name, "input": {}});
                    self.begin_block("tool_use", block, &mut sent);
                }
                Piece::Arguments(json) => {
                    sent.push(self.delta(json!({"type": "input_json_delta", "partial_json": json})));
                }
            }
        }
        sent
    }
}

impl Chunks for Events {
    fn begin(&mut self) -> Vec<Sent> {
        let message = json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": {"input_tokens": self.tokens, "output_tokens": 0},
        });
        vec![Sent::typed(json!({"type": "message_start", "message": message}))]
    }

    fn reply(&mut self, _choice: usize, reply: Reply) -> Vec<Sent> {
        match reply {
            Reply::Token { text, .. } => {
                let pieces = self.reader.push(&text);
                self.pieces(pieces)
            }
            Reply::Ended { text, usage, stop } => {
                let mut pieces = self.reader.push(&text);
                pieces.extend(self.reader.end());
                let mut sent = self.pieces(pieces);
                self.close(&mut sent);
                self.last = Some((usage, stop));
                sent
            }
            Reply::Prompt(_) | Reply::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Sent> {
        let Some((usage, stop)) = &self.last else { return Vec::new() };
        let reason = stop_reason(usage, stop.as_deref(), self.calls);
        let delta = json!({"stop_reason": reason, "stop_sequence": stop});
        vec![
            Sent::typed(json!({"type": "message_delta", "delta": delta, "usage": usage_json(usage)})),
            Sent::typed(json!({"type": "message_stop"})),
        ]
    }

    fn done(&self) -> Option<Sent> {
        None
    }

    fn failed(&mut self, error: &ApiError) -> Sent {
        Sent::typed(AnthropicError::from(error.clone()).body())
    }
}
