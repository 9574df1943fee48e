//! Routes for operators.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
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

/// The program's version.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
