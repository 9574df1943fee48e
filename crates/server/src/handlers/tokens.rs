//! `/tokenize`, `/detokenize` and `/tokenizer_info`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{App, beside, json as answer};
use crate::error::ApiError;

fn failed(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "tokenizer", error.to_string())
}

/// Text to ids: `{"prompt"}` as in vLLM, or `{"content"}` as in llama.cpp. Special tokens in the text are one id.
pub(crate) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut fields = app.fields(request).await?;
    app.check_model(&mut fields)?;
    let (prompt, content) = (fields.text("prompt")?, fields.text("content")?);
    // The two servers have different names and different defaults.
    let (text, default) = match (prompt, content) {
        (Some(text), None) => (text, true),
        (None, Some(text)) => (text, false),
        _ => return Err(ApiError::field("prompt", "expected either `prompt` or `content` with the text")),
    };
    let special = fields.flag("add_special_tokens")?;
    let special = fields.flag("add_special")?.or(special).unwrap_or(default);
    let texts = fields.flag("return_token_strs")?.unwrap_or(false);
    let (ignored, state) = (fields.ignored(), app.clone());
    let ids = beside(move || state.about.text.tokenizer.encode(&text, special).map_err(failed)).await?;
    let mut value = json!({"tokens": ids, "count": ids.len(), "max_model_len": app.about.context});
    if texts {
        value["token_strs"] = ids.iter().map(|&id| app.about.text.tokenizer.token(id)).collect::<Vec<_>>().into();
    }
    Ok(answer(&app, &ignored, value))
}

/// Ids to text.
pub(crate) async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut fields = app.fields(request).await?;
    app.check_model(&mut fields)?;
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match fields.take("tokens") {
        Some(Value::Array(list)) => list.iter().map(id).collect::<Option<Vec<u32>>>(),
        _ => None,
    };
    let ids = ids.ok_or_else(|| ApiError::field("tokens", "`tokens`: expected a list of token ids"))?;
    let tokenizer = &app.about.text.tokenizer;
    if let Some(id) = ids.iter().find(|&&id| tokenizer.token(id).is_none()) {
        return Err(ApiError::field("tokens", format!("`tokens`: the tokenizer has no token {id}")));
    }
    let (ignored, state) = (fields.ignored(), app.clone());
    let text = beside(move || state.about.text.tokenizer.decode(&ids, false).map_err(failed)).await?;
    Ok(answer(&app, &ignored, json!({"prompt": text, "content": text})))
}

/// What evaluation programs ask for first.
pub(crate) async fn info(State(app): State<Arc<App>>) -> Response {
    let text = &app.about.text;
    let mut value = json!({
        "vocab_size": text.tokenizer.vocab_size(),
        "model_max_length": app.about.context,
        "chat_template": text.template.as_ref().map(|template| template.source()),
        "eos_token": null,
        "bos_token": null,
        "pad_token": null,
    });
    for (name, token) in text.tokenizer.named_special_tokens() {
        value[name] = json!(token);
    }
    if value["eos_token"].is_null()
        && let Some(token) = text.stop.first().and_then(|&id| text.tokenizer.token(id))
    {
        value["eos_token"] = json!(token);
    }
    Json(value).into_response()
}
