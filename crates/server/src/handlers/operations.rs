//! Routes for operators.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{App, chat};
use crate::error::ApiError;

/// The process answers.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The model is open and takes requests.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.shared.draining.load(Ordering::Acquire) {
        return ApiError::unavailable("shutting_down", "the server is ending").into_response();
    }
    if !app.shared.ready.load(Ordering::Acquire) {
        return ApiError::unavailable("device_lost", "the model is being opened again").into_response();
    }
    Json(json!({"status": "ready"})).into_response()
}

/// Metrics for Prometheus.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.shared.metrics.text()).into_response()
}

/// The text of a conversation's prompt, as in llama.cpp.
pub(crate) async fn apply_template(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut fields = app.fields(request).await?;
    app.check_model(&mut fields)?;
    let conversation = chat::read(&mut fields)?;
    let ignored = fields.ignored();
    let prompt = conversation.render(&app).await?;
    Ok(super::json(&app, &ignored, json!({"prompt": prompt})))
}

/// What the server is set to, with llama.cpp's names.
pub(crate) async fn props(State(app): State<Arc<App>>) -> Json<Value> {
    let about = &app.about;
    let settings = &about.defaults.settings;
    let special = |name: &str| about.text.tokenizer.special(name).unwrap_or_default().to_string();
    Json(json!({
        "model_alias": app.options.model,
        "total_slots": about.slots,
        "default_generation_settings": {
            "n_ctx": about.context,
            "params": {
                "temperature": settings.temperature,
                "top_k": settings.top_k,
                "top_p": settings.top_p,
                "min_p": settings.min_p,
                "repeat_penalty": settings.repeat_penalty,
                "presence_penalty": settings.presence_penalty,
                "frequency_penalty": settings.frequency_penalty,
                "stop": about.defaults.stop,
                "n_predict": about.defaults.max_tokens.map_or(-1, |most| most as i64),
            },
        },
        "chat_template": about.text.template.as_ref().map(|template| template.source()),
        "bos_token": special("bos_token"),
        "eos_token": special("eos_token"),
        "modalities": {"vision": false, "audio": false},
        "build_info": format!("bayan {}", env!("CARGO_PKG_VERSION")),
    }))
}

/// The program's version.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
