//! `/v1/models`: the model and its adapters, which are loaded and unloaded by name.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::App;
use crate::error::ApiError;
use crate::worker::Message;

/// Most adapters at a time.
const MOST_ADAPTERS: usize = 64;

fn model(app: &App, id: &str) -> Value {
    let parent = (id != app.options.model).then_some(&app.options.model);
    json!({
        "id": id,
        "object": "model",
        "created": app.created,
        "owned_by": "bayan",
        "root": app.options.model,
        "parent": parent,
        "max_model_len": app.about.context,
    })
}

/// All models: the one that is served, and its adapters.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let names: Vec<String> = app.shared.adapters().keys().cloned().collect();
    let data: Vec<Value> = [&app.options.model].into_iter().chain(&names).map(|id| model(&app, id)).collect();
    Json(json!({"object": "list", "data": data}))
}

/// One model; names may have slashes.
pub(crate) async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    let known = id == app.options.model || app.shared.adapters().contains_key(&id);
    if known { Json(model(&app, &id)).into_response() } else { app.no_model(&id).into_response() }
}

/// Loads an adapter.
pub(crate) async fn load(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut fields = app.fields(request).await?;
    let name = name(fields.text("lora_name")?)?;
    let missing = || ApiError::field("lora_path", "`lora_path` is missing");
    let path = fields.text("lora_path")?.ok_or_else(missing)?;
    let Some(directory) = &app.options.adapter_dir else {
        let message = "adapters are only loaded where the server has `--adapter-dir DIR`";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "adapters_not_allowed", message));
    };
    let path = within(directory, FilePath::new(&path))?;
    let taken = name == app.options.model || app.shared.adapters().contains_key(&name);
    if taken || app.shared.adapters().len() >= MOST_ADAPTERS {
        let message = format!("`lora_name`: `{name}` is taken, or there are {MOST_ADAPTERS} adapters already");
        return Err(ApiError::field("lora_name", message));
    }
    change(&app, name, Some(path)).await
}

/// Unloads an adapter that no request uses.
pub(crate) async fn unload(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut fields = app.fields(request).await?;
    let name = name(fields.text("lora_name")?)?;
    if app.options.adapter_dir.is_none() {
        let message = "adapters are only unloaded where the server has `--adapter-dir DIR`";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "adapters_not_allowed", message));
    }
    change(&app, name, None).await
}

async fn change(app: &App, name: String, from: Option<PathBuf>) -> Result<Response, ApiError> {
    let (done, changed) = oneshot::channel();
    let ended = || ApiError::unavailable("engine_ended", "the engine has ended; restart the server");
    app.submit.send(Message::Adapter { name: name.clone(), from, done }).map_err(|_| ended())?;
    changed.await.map_err(|_| ended())??;
    Ok(Json(json!({"status": "ok", "lora_name": name})).into_response())
}

fn name(given: Option<String>) -> Result<String, ApiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let name = given.filter(|name| !name.is_empty() && name.len() <= 128 && name.chars().all(plain));
    name.ok_or_else(|| {
        ApiError::field("lora_name", "`lora_name`: expected 1 to 128 letters, digits, `_`, `-`, `.`, `/`")
    })
}

/// The path, if it is in the directory; links are followed first.
fn within(directory: &FilePath, path: &FilePath) -> Result<PathBuf, ApiError> {
    let found = directory.canonicalize().ok().and_then(|directory| {
        let path = directory.join(path).canonicalize().ok()?;
        path.starts_with(&directory).then_some(path)
    });
    // The same answer for paths outside, so that nobody learns what is there.
    found.ok_or_else(|| {
        ApiError::field("lora_path", "`lora_path`: expected a directory within the server's --adapter-dir")
    })
}
