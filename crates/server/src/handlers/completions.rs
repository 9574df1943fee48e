//! `/v1/completions`: texts or ids are continued; with `echo` and `logprobs` also the prompt is scored.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use bayan_generate::{Job, TokenScore};
use serde_json::{Value, json};

use super::stream::{Chunks, Sent, respond};
use super::{App, Owner, beside, collect, json as answer_json};
use crate::constraint::Constrained;
use crate::error::ApiError;
use crate::protocol::{Logprobs, Totals, Wanted, check_prompt, finish_reason, new_id, now};
use crate::worker::Reply;

/// A prompt: its text, if it was given as one, and its tokens.
#[derive(Debug, Clone)]
struct Prompt {
    text: Option<String>,
    ids: Vec<u32>,
}

/// Continues prompts.
pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = app.fields(request).await?;
    let adapter = app.check_model(&mut fields)?;
    let mut wanted = Wanted::read(&mut fields, &app.about, &app.shared.limits)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    if wanted.max_tokens == Some(0) && !echo {
        return Err(ApiError::field("max_tokens", "`max_tokens`: 0 is only allowed with `echo`: true"));
    }
    let scores = fields.integer("logprobs", 0, 20)?.map(|top| top as usize);
    let ids_as_text = fields.flag("return_tokens_as_token_ids")?.unwrap_or(false);
    let best_of = fields.integer("best_of", 1, 8)?.unwrap_or(wanted.n as i64);
    if best_of as usize != wanted.n {
        return Err(ApiError::field("best_of", "`best_of`: only the number of answers `n` is supported"));
    }
    fields.refuse("suffix", |value| value == "")?;
    fields.without_effect(&["user"]);
    let constraint = Constrained::read(&mut fields)?;
    let prompt = fields.take("prompt").ok_or_else(|| ApiError::field("prompt", "`prompt` is missing"))?;
    let ignored = fields.ignored();
    let state = app.clone();
    let (prompts, grammar) = beside(move || {
        let grammar = constraint.map(|constraint| constraint.compile(&state.about.text.tokenizer)).transpose()?;
        Ok((prompts(&state, prompt)?, grammar))
    })
    .await?;
    wanted.grammar = grammar;
    let model = app.model_name(adapter.as_ref());
    wanted.adapter = adapter;
    // OpenAI's default; a chat has none.
    wanted.max_tokens = wanted.max_tokens.or(Some(16));
    let stop = std::mem::take(&mut wanted.stop);
    let n = wanted.n;
    let job = |(prompt, choice): (&Prompt, usize)| {
        let job = wanted.job(prompt.ids.clone(), owner, choice);
        (Job { scores, prompt_scores: scores.filter(|_| echo), ..job }, stop.clone())
    };
    let jobs: Vec<_> = prompts.iter().flat_map(|prompt| (0..n).map(move |choice| (prompt, choice))).map(job).collect();
    let count = jobs.len();
    let replies = app.submit(jobs)?;
    let writing = |index: usize| Writing {
        prompt: prompts[index / n].clone(),
        logprobs: scores.map(|_| Logprobs::new(ids_as_text)),
        echo,
        begun: false,
    };
    let mut chunks = Texts {
        writings: (0..count).map(writing).collect(),
        model,
        id: new_id("cmpl"),
        created: now(),
        n,
        include_usage: wanted.include_usage,
        totals: Totals::default(),
        app: app.clone(),
    };
    if wanted.stream {
        return Ok(app.report(&ignored, respond(replies, count, chunks)));
    }
    let mut choices = Vec::new();
    for (index, answer) in collect(replies, count).await?.into_iter().enumerate() {
        let Some(usage) = answer.usage else { continue };
        chunks.totals.add(&usage, index % n == 0);
        let mut text = chunks.prompt(index, &answer.prompt_scores);
        text.push_str(&answer.text);
        for (id, score) in &answer.tokens {
            chunks.token(index, *id, score.as_ref());
        }
        choices.push(chunks.choice(index, &text, Some(finish_reason(usage.finish))));
    }
    let mut value = chunks.chunk(choices);
    value["usage"] = chunks.totals.json();
    Ok(answer_json(&app, &ignored, value))
}

/// A text, a list of ids, or a list of either. Ids are taken as they are; texts begin as the tokenizer begins a prompt.
fn prompts(app: &App, value: Value) -> Result<Vec<Prompt>, ApiError> {
    let wrong = || ApiError::field("prompt", "`prompt`: expected a text, a list of token ids, or a list of either");
    let is_number = |list: &Vec<Value>| list.first().is_some_and(Value::is_number);
    let list = match value {
        Value::Array(list) if is_number(&list) => vec![Value::Array(list)],
        Value::Array(list) => list,
        text => vec![text],
    };
    if list.is_empty() {
        return Err(wrong());
    }
    let tokenizer = &app.about.text.tokenizer;
    let prompt = |value: Value| -> Result<Prompt, ApiError> {
        let failed = |error: bayan_generate::text::TextError| ApiError::field("prompt", error.to_string());
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let (text, ids) = match value {
            Value::String(text) => {
                let ids = tokenizer.encode_prompt(&text).map_err(failed)?;
                (Some(text), ids)
            }
            Value::Array(ids) => (None, ids.iter().map(id).collect::<Option<Vec<u32>>>().ok_or_else(wrong)?),
            _ => return Err(wrong()),
        };
        check_prompt(&ids, &app.about, "prompt")?;
        Ok(Prompt { text, ids })
    };
    list.into_iter().map(prompt).collect()
}

/// What is known of one answer.
struct Writing {
    prompt: Prompt,
    logprobs: Option<Logprobs>,
    echo: bool,
    /// Whether the prompt has been written.
    begun: bool,
}

struct Texts {
    app: Arc<App>,
    writings: Vec<Writing>,
    model: String,
    id: String,
    created: u64,
    n: usize,
    include_usage: bool,
    totals: Totals,
}

impl Texts {
    fn chunk(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    fn choice(&mut self, index: usize, text: &str, finish: Option<&str>) -> Value {
        let logprobs = self.writings[index].logprobs.as_mut().map_or(Value::Null, Logprobs::take);
        json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
    }

    /// The text of the prompt, if it is echoed, and its entries in the lists of log-probabilities.
    fn prompt(&mut self, index: usize, scores: &[TokenScore]) -> String {
        let tokenizer = self.app.about.text.tokenizer.clone();
        let writing = &mut self.writings[index];
        if !writing.echo {
            return String::new();
        }
        if let Some(logprobs) = &mut writing.logprobs {
            let first = writing.prompt.ids.first().filter(|_| !writing.begun);
            first.iter().for_each(|id| logprobs.push(&tokenizer, **id, None));
            scores.iter().for_each(|score| logprobs.push(&tokenizer, score.id, Some(score)));
        }
        if std::mem::replace(&mut writing.begun, true) {
            return String::new();
        }
        match &writing.prompt.text {
            Some(text) => text.clone(),
            None => tokenizer.decode(&writing.prompt.ids, false).unwrap_or_default(),
        }
    }

    fn token(&mut self, index: usize, id: u32, score: Option<&TokenScore>) {
        if let Some(logprobs) = &mut self.writings[index].logprobs {
            logprobs.push(&self.app.about.text.tokenizer, id, score);
        }
    }

    fn chunk_of(&mut self, index: usize, text: &str, finish: Option<&str>) -> Sent {
        let choice = self.choice(index, text, finish);
        let mut chunk = self.chunk(vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk.into()
    }
}

impl Chunks for Texts {
    fn begin(&mut self) -> Vec<Sent> {
        Vec::new()
    }

    fn reply(&mut self, choice: usize, reply: Reply) -> Vec<Sent> {
        match reply {
            Reply::Prompt(scores) => {
                let text = self.prompt(choice, &scores);
                vec![self.chunk_of(choice, &text, None)]
            }
            Reply::Token { id, score, text } => {
                let mut before = if self.writings[choice].begun { String::new() } else { self.prompt(choice, &[]) };
                before.push_str(&text);
                self.token(choice, id, score.as_ref());
                let silent = before.is_empty() && score.is_none();
                if silent { Vec::new() } else { vec![self.chunk_of(choice, &before, None)] }
            }
            Reply::Ended { text, usage, .. } => {
                self.totals.add(&usage, choice.is_multiple_of(self.n));
                let mut before = if self.writings[choice].begun { String::new() } else { self.prompt(choice, &[]) };
                before.push_str(&text);
                vec![self.chunk_of(choice, &before, Some(finish_reason(usage.finish)))]
            }
            Reply::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Sent> {
        if !self.include_usage {
            return Vec::new();
        }
        let mut chunk = self.chunk(Vec::new());
        chunk["usage"] = self.totals.json();
        vec![chunk.into()]
    }
}
