//! One file for each group of routes, and what they share.

mod chat;
mod completions;
mod messages;
mod models;
mod openapi;
mod operations;
pub(crate) mod page;
mod responses;
mod stream;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Instant;

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use bayan_generate::{Job, TokenScore, Usage};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::limits::ServerOptions;
use crate::worker::{About, Message, Reply, Shared, Submission};
use openapi::Route;

/// Names fields of a request that had no effect.
const IGNORED: HeaderName = HeaderName::from_static("x-bayan-ignored-fields");

/// What every handler needs.
pub(crate) struct App {
    pub(crate) shared: Arc<Shared>,
    pub(crate) about: About,
    pub(crate) submit: Sender<Message>,
    pub(crate) options: ServerOptions,
    /// When the server started, in seconds since 1970.
    pub(crate) created: u64,
}

/// The identity that a request showed: 0 without keys, else the number of its key. Cached prefixes belong to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner(pub(crate) u64);

/// All routes of the interface, and with `ui` those of the chat page.
pub(crate) fn routes(ui: bool) -> Router<Arc<App>> {
    let pages = if ui { page::routes() } else { Router::new() };
    table().into_iter().fold(pages, |router, (route, handler)| router.route(route.path, handler))
}

/// Each route, as `/openapi.json` describes it, with its handler.
fn table() -> Vec<(Route, MethodRouter<Arc<App>>)> {
    vec![
        (Route::post("/v1/chat/completions", "Answers a conversation", openapi::CHAT), post(chat::answer)),
        (Route::post("/v1/completions", "Continues prompts", openapi::COMPLETIONS), post(completions::answer)),
        (Route::post("/v1/responses", "Answers; nothing is stored", openapi::RESPONSES), post(responses::answer)),
        (Route::post("/v1/messages", "Answers, as Anthropic's", openapi::MESSAGES), post(messages::answer)),
        (
            Route::post("/v1/messages/count_tokens", "Counts a conversation's tokens", openapi::COUNT),
            post(messages::count),
        ),
        (Route::get("/v1/models", "Lists the models"), get(models::list)),
        (Route::post("/v1/load_lora_adapter", "Loads an adapter as a model name", openapi::LOAD), post(models::load)),
        (Route::post("/v1/unload_lora_adapter", "Unloads an adapter", openapi::UNLOAD), post(models::unload)),
        (Route::get("/v1/models/{*id}", "One model"), get(models::one)),
        (Route::post("/tokenize", "Text to tokens", openapi::TOKENIZE), post(tokens::tokenize)),
        (Route::post("/detokenize", "Tokens to text", openapi::DETOKENIZE), post(tokens::detokenize)),
        (Route::get("/tokenizer_info", "The tokenizer and its special tokens"), get(tokens::info)),
        (
            Route::post("/apply-template", "The text of a conversation's prompt", openapi::TEMPLATE),
            post(operations::apply_template),
        ),
        (Route::get("/health", "The process answers"), get(operations::health)),
        (Route::get("/ready", "The model is open and the server is not ending"), get(operations::ready)),
        (Route::get("/metrics", "Metrics for Prometheus"), get(operations::metrics)),
        (Route::get("/version", "The program's version"), get(operations::version)),
        (Route::get("/props", "What the server is set to"), get(operations::props)),
        (Route::get("/openapi.json", "This description"), get(openapi::describe)),
    ]
}

/// The description of every route.
fn described() -> Vec<Route> {
    table().into_iter().map(|(route, _)| route).collect()
}

impl App {
    /// Reads the JSON of a request.
    pub(crate) async fn fields(&self, request: Request) -> Result<Fields, ApiError> {
        let limits = &self.shared.limits;
        let body = tokio::time::timeout(limits.receive_time, to_bytes(request.into_body(), limits.body_bytes)).await;
        let Ok(body) = body else {
            let message = format!("the request was not complete after {} s", limits.receive_time.as_secs_f64());
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message));
        };
        let body = body.map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            if source.contains("limit") {
                let message = format!("the body is larger than the {} bytes that are allowed here", limits.body_bytes);
                return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message);
            }
            ApiError::request(format!("the body cannot be read: {error}"))
        })?;
        Fields::parse(&body)
    }

    /// The adapter that the request names as its model; `None`: it names the model itself, or none.
    pub(crate) fn check_model(&self, fields: &mut Fields) -> Result<Option<String>, ApiError> {
        match fields.text("model")? {
            Some(name) if name == self.options.model => Ok(None),
            Some(name) if self.shared.adapters().contains_key(&name) => Ok(Some(name)),
            Some(name) => Err(self.no_model(&name)),
            None => Ok(None),
        }
    }

    /// The name in answers.
    pub(crate) fn model_name(&self, adapter: Option<&String>) -> String {
        adapter.unwrap_or(&self.options.model).clone()
    }

    pub(crate) fn no_model(&self, name: &str) -> ApiError {
        let message = format!("there is no model `{name}` here; the model is `{}`", self.options.model);
        ApiError { param: Some("model".into()), ..ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message) }
    }

    /// Queues the answers of a request, and returns their replies with the number of the answer.
    pub(crate) fn submit(&self, jobs: Vec<(Job, Vec<String>)>) -> Result<UnboundedReceiver<(usize, Reply)>, ApiError> {
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(ApiError::unavailable("shutting_down", "the server is ending; ask another one"));
        }
        if !self.shared.ready.load(Ordering::Acquire) {
            let message = "the device failed and the model is being opened again; try again later";
            return Err(ApiError::unavailable("device_lost", message));
        }
        if jobs.len() > self.shared.limits.choices {
            let most = self.shared.limits.choices;
            return Err(ApiError::request(format!("at most {most} answers to one request, got {}", jobs.len())));
        }
        // All answers to a request have one model.
        let adapter = jobs.first().and_then(|(job, _)| job.adapter.clone());
        self.shared.enqueue(adapter.as_deref(), jobs.len())?;
        let (replies, receiver) = unbounded_channel();
        let arrived = Instant::now();
        for (choice, (job, stop)) in jobs.into_iter().enumerate() {
            let submission = Submission { job, stop, choice, replies: replies.clone(), arrived };
            if self.submit.send(Message::Answer(Box::new(submission))).is_err() {
                return Err(ApiError::unavailable("engine_ended", "the engine has ended; restart the server"));
            }
        }
        Ok(receiver)
    }

    /// Reports fields without effect in a header of the answer.
    pub(crate) fn report(&self, ignored: &[String], response: impl IntoResponse) -> Response {
        let mut response = response.into_response();
        if ignored.is_empty() {
            return response;
        }
        self.shared.metrics.ignored_fields.inc_by(ignored.len() as u64);
        let plain = |name: &String| -> String {
            let fits = |c: &char| c.is_ascii_alphanumeric() || "_-.".contains(*c);
            name.chars().filter(fits).take(64).collect()
        };
        let names: Vec<String> = ignored.iter().take(20).map(plain).collect();
        tracing::warn!(fields = names.join(", "), "fields of a request had no effect");
        if let Ok(value) = HeaderValue::from_str(&names.join(", ")) {
            response.headers_mut().insert(IGNORED, value);
        }
        response
    }
}

/// A whole answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) prompt_scores: Vec<TokenScore>,
    /// New tokens, with scores where they were asked for.
    pub(crate) tokens: Vec<(u32, Option<TokenScore>)>,
    pub(crate) usage: Option<Usage>,
    /// The stop text that ended it.
    pub(crate) stop: Option<String>,
}

/// Waits for the only answer of a request.
pub(crate) async fn collect_one(replies: UnboundedReceiver<(usize, Reply)>) -> Result<(Answer, Usage), ApiError> {
    let mut answer = collect(replies, 1).await?.pop().unwrap_or_default();
    let usage = answer.usage.take().ok_or_else(|| ApiError::unavailable("engine_ended", ENDED))?;
    Ok((answer, usage))
}

/// The message of a request whose answer the engine did not end.
const ENDED: &str = "the engine ended before the answer; try again later";

/// Waits for all answers of a request.
pub(crate) async fn collect(
    mut replies: UnboundedReceiver<(usize, Reply)>,
    count: usize,
) -> Result<Vec<Answer>, ApiError> {
    let mut answers: Vec<Answer> = (0..count).map(|_| Answer::default()).collect();
    while answers.iter().any(|answer| answer.usage.is_none()) {
        let Some((choice, reply)) = replies.recv().await else {
            return Err(ApiError::unavailable("engine_ended", ENDED));
        };
        let answer = &mut answers[choice];
        match reply {
            Reply::Prompt(scores) => answer.prompt_scores.extend(scores),
            Reply::Token { id, score, text } => {
                answer.text.push_str(&text);
                answer.tokens.push((id, score));
            }
            Reply::Ended { text, usage, stop } => {
                answer.text.push_str(&text);
                answer.usage = Some(usage);
                answer.stop = stop;
            }
            Reply::Failed(error) => return Err(error),
        }
    }
    Ok(answers)
}

/// JSON with fields that had no effect in a header.
pub(crate) fn json(app: &App, ignored: &[String], value: Value) -> Response {
    app.report(ignored, Json(value))
}

/// Runs work that takes long, such as tokenizing a long text, beside the handlers.
pub(crate) async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let failed = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the request could not be processed");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
