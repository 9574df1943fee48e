//! OpenAI's `/v1/responses`. It keeps nothing: every request holds its whole conversation.

mod events;
mod input;

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use bayan_generate::openai::Reader;
use bayan_generate::{FinishReason, Usage};
use serde_json::{Value, json};

use super::stream::respond;
use super::{App, Owner, collect_one, json as answer_json};
use crate::error::ApiError;
use crate::exchange::{Call, Ready, Spoken};
use crate::fields::Fields;
use crate::protocol::{Wanted, new_id, now};
use events::Events;

/// Fields of OpenAI that change nothing of an answer.
const WITHOUT_EFFECT: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "include",
];

/// Answers a conversation.
pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = app.fields(request).await?;
    let adapter = app.check_model(&mut fields)?;
    refuse_unsupported(&mut fields)?;
    let echoed = echoed(&mut fields);
    fields.rename("max_output_tokens", "max_tokens");
    let mut wanted = Wanted::read(&mut fields, &app.about, &app.shared.limits)?;
    wanted.require_one_answer()?;
    wanted.require_tokens("max_output_tokens")?;
    let conversation = input::read(&mut fields)?;
    fields.without_effect(WITHOUT_EFFECT);
    let ready = conversation.ready(&app, fields, adapter, &mut wanted).await?;
    let Ready { prompt, stop, format, model, ignored } = ready;
    let about = About {
        id: new_id("resp").replacen('-', "_", 1),
        created: now(),
        model,
        temperature: wanted.settings.temperature,
        top_p: wanted.settings.top_p,
        echoed,
    };
    let replies = app.submit(vec![(wanted.job(prompt, owner, 0), stop)])?;
    if wanted.stream {
        return Ok(app.report(&ignored, respond(replies, 1, Events::new(about, Reader::new(format), format))));
    }
    let (answer, usage) = collect_one(replies).await?;
    let spoken = Spoken::of(&answer, format);
    let state = state(&usage);
    let mut output = Vec::new();
    if !spoken.text.is_empty() || spoken.calls.is_empty() {
        output.push(message(&item_id("msg"), &spoken.text, state));
    }
    output.extend(spoken.calls.iter().map(|call| function_call(&item_id("fc"), call, state)));
    Ok(answer_json(&app, &ignored, about.response(state, output, Some(&usage))))
}

/// Refuses what needs a store, or would change an answer and is not there.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let no = |value: &Value| value == &Value::Bool(false);
    fields.refuse("background", no)?;
    fields.refuse("truncation", |value| value == "disabled")?;
    for name in ["previous_response_id", "conversation", "prompt", "reasoning", "max_tool_calls", "top_logprobs"] {
        fields.refuse(name, |_| false)?;
    }
    Ok(())
}

/// The fields of a request that its response repeats.
fn echoed(fields: &mut Fields) -> Value {
    let mut echoed = json!({
        "instructions": null,
        "max_output_tokens": null,
        "metadata": {},
        "parallel_tool_calls": true,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
    });
    for (name, value) in echoed.as_object_mut().into_iter().flatten() {
        if let Some(given) = fields.look(name) {
            *value = given.clone();
        }
    }
    echoed
}

/// What a response says of itself.
struct About {
    id: String,
    created: u64,
    model: String,
    temperature: f32,
    top_p: f32,
    echoed: Value,
}

impl About {
    /// The response as it stands.
    fn response(&self, status: &str, output: Vec<Value>, usage: Option<&Usage>) -> Value {
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": (status == "incomplete").then(|| json!({"reason": "max_output_tokens"})),
            "model": self.model,
            "output": output,
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "store": false,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "truncation": "disabled",
            "usage": usage.map(usage_json),
            "user": null,
        });
        for (name, value) in self.echoed.as_object().into_iter().flatten() {
            response[name] = value.clone();
        }
        response
    }
}

fn state(usage: &Usage) -> &'static str {
    match usage.finish {
        FinishReason::Length | FinishReason::ContextFull => "incomplete",
        _ => "completed",
    }
}

fn item_id(kind: &str) -> String {
    new_id(kind).replacen('-', "_", 1)
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn message(id: &str, text: &str, status: &str) -> Value {
    json!({"id": id, "type": "message", "role": "assistant", "status": status, "content": [part(text)]})
}

fn function_call(id: &str, call: &Call, status: &str) -> Value {
    json!({
        "id": id,
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    })
}

fn usage_json(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
    })
}
