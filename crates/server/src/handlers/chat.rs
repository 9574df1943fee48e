//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use bayan_generate::Usage;
use bayan_generate::text::join_parts;
use serde_json::{Value, json};

use super::stream::{Chunks, respond};
use super::{App, Owner, beside, collect, json as answer_json};
use crate::error::ApiError;
use crate::fields::{Fields, kind};
use crate::protocol::{Totals, Wanted, chat_logprob, check_prompt, finish_reason, new_id, now};
use crate::worker::Reply;

/// Fields of OpenAI that change nothing of an answer.
const WITHOUT_EFFECT: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
];

/// Answers a conversation.
pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = app.fields(request).await?;
    app.check_model(&mut fields)?;
    refuse_unsupported(&mut fields)?;
    let mut wanted = Wanted::read(&mut fields, &app.about, &app.shared.limits)?;
    if wanted.max_tokens == Some(0) {
        return Err(ApiError::field("max_tokens", "`max_tokens`: expected at least 1"));
    }
    let scored = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, 20)?;
    if top.is_some_and(|top| top > 0) && !scored {
        return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
    }
    let scores = scored.then_some(top.unwrap_or(0) as usize);
    let kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    let messages = messages(fields.take("messages"))?;
    fields.without_effect(WITHOUT_EFFECT);
    let ignored = fields.ignored();
    let state = app.clone();
    let prompt = beside(move || {
        let text = &state.about.text;
        let wrong = |error: String| ApiError::field("messages", error);
        let template = text.template().map_err(|error| wrong(error.to_string()))?;
        let ids = template.prompt(&messages, kwargs, &text.tokenizer).map_err(|error| wrong(error.to_string()))?;
        check_prompt(&ids, &state.about, "messages").map(|()| ids)
    })
    .await?;
    let n = wanted.n;
    let stop = std::mem::take(&mut wanted.stop);
    let job = |choice| {
        let job = bayan_generate::Job { scores, ..wanted.job(prompt.clone(), owner, choice) };
        (job, stop.clone())
    };
    let replies = app.submit((0..n).map(job).collect())?;
    let (id, created) = (new_id("chatcmpl"), now());
    if wanted.stream {
        let chunks = ChatChunks {
            app: app.clone(),
            id,
            created,
            n,
            scored,
            include_usage: wanted.include_usage,
            totals: Totals::default(),
        };
        return Ok(app.report(&ignored, respond(replies, n, chunks)));
    }
    let answers = collect(replies, n).await?;
    let mut totals = Totals::default();
    let mut choices = Vec::new();
    for (index, answer) in answers.into_iter().enumerate() {
        let Some(usage) = answer.usage else { continue };
        totals.add(&usage, index == 0);
        let content = answer.tokens.iter().filter_map(|(_, score)| score.as_ref());
        let content: Vec<Value> = content.map(|score| chat_logprob(&app.about.text.tokenizer, score)).collect();
        choices.push(json!({
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": null},
            "logprobs": if scored { json!({"content": content, "refusal": null}) } else { Value::Null },
            "finish_reason": finish_reason(usage.finish),
        }));
    }
    let value = json!({
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": app.options.model,
        "choices": choices,
        "usage": totals.json(),
    });
    Ok(answer_json(&app, &ignored, value))
}

/// Refuses what would change an answer and is not there yet.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    fields.refuse("tools", empty)?;
    fields.refuse("functions", empty)?;
    let none = |value: &Value| value == "none" || value == "auto";
    fields.refuse("tool_choice", none)?;
    fields.refuse("function_call", none)?;
    fields.refuse("response_format", |value| value["type"] == "text")?;
    fields.refuse("modalities", |value| value == &json!(["text"]))?;
    for name in ["audio", "prediction", "web_search_options", "reasoning_effort", "verbosity"] {
        fields.refuse(name, |_| false)?;
    }
    for name in ["guided_json", "guided_regex", "guided_grammar", "structured_outputs", "grammar", "json_schema"] {
        fields.refuse(name, |_| false)?;
    }
    Ok(())
}

/// The messages as templates read them: content is a text.
fn messages(value: Option<Value>) -> Result<Vec<Value>, ApiError> {
    let Some(Value::Array(list)) = value else {
        return Err(ApiError::field("messages", "`messages`: expected a list of messages"));
    };
    if list.is_empty() {
        return Err(ApiError::field("messages", "`messages` is empty: expected at least one message"));
    }
    list.iter().enumerate().map(|(index, value)| message(index, value)).collect()
}

fn message(index: usize, value: &Value) -> Result<Value, ApiError> {
    let place = format!("messages[{index}]");
    let wrong = |what: String| ApiError::field(&place, format!("`{place}`: {what}"));
    let Some(map) = value.as_object() else {
        return Err(wrong(format!("expected an object with `role` and `content`, got {}", kind(value))));
    };
    let role = match map.get("role").and_then(Value::as_str) {
        // OpenAI's newer name.
        Some("system" | "developer") => "system",
        Some(role @ ("user" | "assistant")) => role,
        Some("tool" | "function") => return Err(wrong("tools are not supported".into()).with_code("unsupported")),
        _ => return Err(wrong("`role`: expected system, developer, user or assistant".into())),
    };
    let content = match map.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => join_parts(parts).map_err(|(part, got)| {
            wrong(format!("`content[{part}]`: only parts of type text are supported, got {got}"))
        })?,
        Some(Value::Null) | None => return Err(wrong("`content` is missing".into())),
        Some(other) => return Err(wrong(format!("`content`: expected a string, got {}", kind(other)))),
    };
    for (name, value) in map {
        let known = ["role", "content", "name", "refusal", "annotations", "audio"].contains(&name.as_str());
        let nothing = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if !nothing && (!known || name == "audio") {
            return Err(wrong(format!("`{name}` is not supported; leave it out")).with_code("unsupported"));
        }
    }
    let mut message = json!({"role": role, "content": content});
    if let Some(name) = map.get("name").filter(|name| name.is_string()) {
        message["name"] = name.clone();
    }
    Ok(message)
}

struct ChatChunks {
    app: Arc<App>,
    id: String,
    created: u64,
    n: usize,
    scored: bool,
    include_usage: bool,
    totals: Totals,
}

impl ChatChunks {
    fn chunk(&self, choices: Value, usage: Value) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.app.options.model,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    fn delta(&self, index: usize, delta: Value, logprobs: Value, finish: Option<&Usage>) -> Value {
        let finish = finish.map(|usage| finish_reason(usage.finish));
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        self.chunk(json!([choice]), Value::Null)
    }
}

impl Chunks for ChatChunks {
    fn begin(&mut self) -> Vec<Value> {
        let first = |index| self.delta(index, json!({"role": "assistant", "content": ""}), Value::Null, None);
        (0..self.n).map(first).collect()
    }

    fn reply(&mut self, choice: usize, reply: Reply) -> Vec<Value> {
        match reply {
            Reply::Token { score, text, .. } => {
                let score = score.filter(|_| self.scored);
                if text.is_empty() && score.is_none() {
                    return Vec::new();
                }
                let content = score.map(|score| chat_logprob(&self.app.about.text.tokenizer, &score));
                let logprobs = content.map_or(Value::Null, |content| json!({"content": [content], "refusal": null}));
                vec![self.delta(choice, json!({"content": text}), logprobs, None)]
            }
            Reply::Ended { text, usage } => {
                self.totals.add(&usage, choice == 0);
                let rest = (!text.is_empty()).then(|| self.delta(choice, json!({"content": text}), Value::Null, None));
                rest.into_iter().chain([self.delta(choice, json!({}), Value::Null, Some(&usage))]).collect()
            }
            Reply::Prompt(_) | Reply::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        if self.include_usage { vec![self.chunk(json!([]), self.totals.json())] } else { Vec::new() }
    }
}
