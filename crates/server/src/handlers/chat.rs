//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use bayan_generate::openai::{Format, Piece, Reader, Tools, chat_logprob, deltas, messages};
use bayan_generate::{Job, Usage};
use serde_json::{Value, json};

use super::stream::{Chunks, Sent, respond};
use super::{App, Owner, collect, json as answer_json};
use crate::constraint::Constrained;
use crate::error::ApiError;
use crate::exchange::{Conversation, Ready, Spoken, call_id};
use crate::fields::Fields;
use crate::protocol::{Totals, Wanted, finish_reason, new_id, now};
use crate::worker::Reply;

/// Fields of OpenAI that change nothing of an answer.
const WITHOUT_EFFECT: &[&str] =
    &["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"];

/// Answers a conversation.
pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = app.fields(request).await?;
    let adapter = app.check_model(&mut fields)?;
    refuse_unsupported(&mut fields)?;
    let mut wanted = Wanted::read(&mut fields, &app.about, &app.shared.limits)?;
    wanted.require_tokens("max_tokens")?;
    let scored = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, 20)?;
    if top.is_some_and(|top| top > 0) && !scored {
        return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
    }
    let scores = scored.then_some(top.unwrap_or(0) as usize);
    let conversation = read(&mut fields)?;
    let tools = conversation.tools.clone();
    fields.without_effect(WITHOUT_EFFECT);
    let ready = conversation.ready(&app, fields, adapter, &mut wanted).await?;
    let Ready { prompt, stop, format, model, ignored } = ready;
    let n = wanted.n;
    let job = |choice| (Job { scores, ..wanted.job(prompt.clone(), owner, choice) }, stop.clone());
    let replies = app.submit((0..n).map(job).collect())?;
    let mut chunks = ChatChunks {
        app: app.clone(),
        model,
        id: new_id("chatcmpl"),
        created: now(),
        readers: (0..n).map(|_| Reader::new(format)).collect(),
        format,
        tools,
        scored,
        include_usage: wanted.include_usage,
        totals: Totals::default(),
    };
    if wanted.stream {
        return Ok(app.report(&ignored, respond(replies, n, chunks)));
    }
    let answers = collect(replies, n).await?;
    let mut choices = Vec::new();
    for (index, answer) in answers.into_iter().enumerate() {
        let Some(usage) = &answer.usage else { continue };
        chunks.totals.add(usage, index == 0);
        let content = answer.tokens.iter().filter_map(|(_, score)| score.as_ref());
        let content: Vec<Value> = content.map(|score| chat_logprob(&app.about.text.tokenizer, score)).collect();
        let spoken = Spoken::of(&answer, format);
        choices.push(json!({
            "index": index,
            "message": message(&spoken),
            "logprobs": if scored { json!({"content": content, "refusal": null}) } else { Value::Null },
            "finish_reason": chunks.finish(usage, spoken.calls.len()),
        }));
    }
    let value = json!({
        "id": chunks.id,
        "object": "chat.completion",
        "created": chunks.created,
        "model": chunks.model,
        "choices": choices,
        "usage": chunks.totals.json(),
    });
    Ok(answer_json(&app, &ignored, value))
}

/// Takes the fields of the conversation.
pub(crate) fn read(fields: &mut Fields) -> Result<Conversation, ApiError> {
    Ok(Conversation {
        tools: tools(fields)?,
        constraint: Constrained::read(fields)?,
        kwargs: fields.object("chat_template_kwargs")?.unwrap_or_default(),
        messages: messages(fields.take("messages").as_ref())?,
        field: "messages",
    })
}

/// Takes the fields of tools.
fn tools(fields: &mut Fields) -> Result<Tools, ApiError> {
    let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    fields.refuse("functions", empty)?;
    fields.refuse("function_call", |value| value == "none" || value == "auto")?;
    let (list, choice) = (fields.take("tools"), fields.take("tool_choice"));
    let parallel = fields.flag("parallel_tool_calls")?.unwrap_or(true);
    Ok(Tools::read(list.as_ref(), choice.as_ref(), parallel)?)
}

/// Refuses what would change an answer and is not there yet.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.refuse("modalities", |value| value == &json!(["text"]))?;
    for name in ["audio", "prediction", "web_search_options", "reasoning_effort", "verbosity"] {
        fields.refuse(name, |_| false)?;
    }
    Ok(())
}

/// The assistant's message.
fn message(spoken: &Spoken) -> Value {
    let silent = spoken.text.is_empty() && !spoken.calls.is_empty();
    let content = if silent { Value::Null } else { json!(spoken.text) };
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !spoken.calls.is_empty() {
        let call = |call: &crate::exchange::Call| json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}});
        message["tool_calls"] = spoken.calls.iter().map(call).collect();
    }
    message
}

struct ChatChunks {
    app: Arc<App>,
    model: String,
    id: String,
    created: u64,
    /// One for each answer.
    readers: Vec<Reader>,
    format: Option<Format>,
    /// The functions that the request offers.
    tools: Tools,
    scored: bool,
    include_usage: bool,
    totals: Totals,
}

impl ChatChunks {
    /// OpenAI's reason of an end.
    fn finish(&self, usage: &Usage, calls: usize) -> &'static str {
        match finish_reason(usage.finish) {
            "stop" if self.tools.ends_with_calls(calls) => "tool_calls",
            other => other,
        }
    }

    fn chunk(&self, choices: Value, usage: Value) -> Sent {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = usage;
        }
        chunk.into()
    }

    fn delta(&self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> Sent {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        self.chunk(json!([choice]), Value::Null)
    }

    /// The deltas of pieces; the log-probability of their token goes with the first.
    fn deltas(&self, index: usize, pieces: Vec<Piece>, first: usize, mut logprobs: Value) -> Vec<Sent> {
        let mut sent = Vec::new();
        for delta in deltas(pieces, first, &mut || call_id(self.format)) {
            sent.push(self.delta(index, delta, logprobs.take(), None));
        }
        if sent.is_empty() && !logprobs.is_null() {
            sent.push(self.delta(index, json!({}), logprobs, None));
        }
        sent
    }
}

impl Chunks for ChatChunks {
    fn begin(&mut self) -> Vec<Sent> {
        let first = |index| self.delta(index, json!({"role": "assistant", "content": ""}), Value::Null, None);
        (0..self.readers.len()).map(first).collect()
    }

    fn reply(&mut self, choice: usize, reply: Reply) -> Vec<Sent> {
        let first = self.readers[choice].calls();
        match reply {
            Reply::Token { score, text, .. } => {
                let score = score.filter(|_| self.scored);
                let content = score.map(|score| chat_logprob(&self.app.about.text.tokenizer, &score));
                let logprobs = content.map_or(Value::Null, |content| json!({"content": [content], "refusal": null}));
                let pieces = self.readers[choice].push(&text);
                self.deltas(choice, pieces, first, logprobs)
            }
            Reply::Ended { text, usage, .. } => {
                self.totals.add(&usage, choice == 0);
                let mut pieces = self.readers[choice].push(&text);
                pieces.extend(self.readers[choice].end());
                let mut sent = self.deltas(choice, pieces, first, Value::Null);
                let finish = self.finish(&usage, self.readers[choice].calls());
                sent.push(self.delta(choice, json!({}), Value::Null, Some(finish)));
                sent
            }
            Reply::Prompt(_) | Reply::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Sent> {
        if self.include_usage { vec![self.chunk(json!([]), self.totals.json())] } else { Vec::new() }
    }
}
