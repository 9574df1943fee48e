//! `/v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;

fn model(app: &App) -> Value {
    json!({
        "id": app.options.model,
        "object": "model",
        "created": app.created,
        "owned_by": "bayan",
        "max_model_len": app.about.context,
    })
}

/// All models: one.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model(&app)]}))
}

/// One model; names may have slashes.
pub(crate) async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    if id == app.options.model { Json(model(&app)).into_response() } else { app.no_model(&id).into_response() }
}
