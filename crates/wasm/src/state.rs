//! The cache of a conversation as bytes, and back.

use bayan_generate::GenerateError;
use js_sys::Uint8Array;
use wasm_bindgen::JsValue;

use crate::adapter;
use crate::error::{Code, EngineError};
use crate::session::{keep_fingerprint, opened, put_back, take_model};

/// The model with all that its numbers depend on: weights, their format, adapters.
async fn identity() -> Result<String, EngineError> {
    let missing = || EngineError::new(Code::Internal, "no model is open; call open first");
    let opened = opened().ok_or_else(missing)?;
    let fingerprint = match opened.fingerprint {
        Some(known) => known,
        None => opened.checkpoint.fingerprint().await.map_err(|e| opened.source.explain(e))?,
    };
    keep_fingerprint(&fingerprint);
    Ok(format!("{fingerprint} in {} with adapters [{}]", opened.format, adapter::fingerprints()))
}

/// The cache of the last conversation as bytes.
pub(crate) async fn save() -> Result<JsValue, EngineError> {
    let model = take_model()?;
    let saved = match identity().await {
        Ok(identity) => model.engine.save_state(&identity).await.map_err(EngineError::from),
        Err(error) => Err(error),
    };
    put_back(model);
    Ok(Uint8Array::from(saved?.as_slice()).into())
}

/// Puts a saved cache back; its number of tokens.
pub(crate) async fn restore(bytes: Vec<u8>) -> Result<JsValue, EngineError> {
    let mut model = take_model()?;
    let restored = match identity().await {
        Ok(identity) => model.engine.restore_state(&identity, &bytes).map_err(|e| GenerateError::from(e).into()),
        Err(error) => Err(error),
    };
    put_back(model);
    Ok((restored? as f64).into())
}
