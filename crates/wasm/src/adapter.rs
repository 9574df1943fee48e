//! LoRA adapters on the open model: read from the page's files with full validation, attached and detached between
//! answers.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bayan_models::{Adapter, AdapterError};
use serde::Deserialize;
use serde_json::{Value, json};
use wasm_bindgen::JsValue;

use crate::error::{Code, EngineError};
use crate::session;
use crate::source::{ByteSource, JsSource};

thread_local! {
    /// `AdapterInfo` of each attached adapter, in order.
    static ATTACHED: RefCell<Vec<Value>> = const { RefCell::new(Vec::new()) };
    /// Their fingerprints by name.
    static FINGERPRINTS: RefCell<BTreeMap<String, String>> = const { RefCell::new(BTreeMap::new()) };
}

/// Options of `loadAdapter`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct AdapterOptions {
    name: Option<String>,
    scale: Option<f32>,
}

impl From<AdapterError> for EngineError {
    fn from(error: AdapterError) -> EngineError {
        EngineError::new(Code::BadCheckpoint, error.to_string())
    }
}

pub(crate) async fn load(source: ByteSource, options: &str) -> Result<JsValue, EngineError> {
    let options: AdapterOptions = serde_json::from_str(options).map_err(|e| EngineError::options("loadAdapter", &e))?;
    let scale = options.scale.unwrap_or(1.0);
    if !scale.is_finite() {
        return Err(EngineError::new(Code::Internal, format!("scale: expected a finite number, got {scale}")));
    }
    let name = options.name.unwrap_or_else(|| format!("adapter {}", ATTACHED.with_borrow(Vec::len) + 1));
    let source = JsSource::new(source);
    let head_dim = session::with_model(|model| Ok(model.engine.sizes().head_dim))?;
    let adapter = Adapter::open_for(source.clone(), head_dim).await.map_err(|e| source.explain(e))?;
    if session::is_aborted() {
        return Err(EngineError::aborted());
    }
    session::with_model(|model| Ok(model.engine.attach(&name, &adapter, scale)?))?;
    let rank = adapter.modules.values().map(|m| m.rank).max();
    let info = json!({"name": name, "scale": scale, "rank": rank, "modules": adapter.modules.len(), "parameters": adapter.parameters()});
    ATTACHED.with_borrow_mut(|attached| attached.push(info.clone()));
    let fingerprint = format!("{} x {scale}", adapter.fingerprint());
    FINGERPRINTS.with_borrow_mut(|known| known.insert(name.clone(), fingerprint));
    // Out of memory is reported only after the upload; the adapter is then detached again.
    if let Err(error) = session::settle().await {
        let _ = unload(Some(&name));
        return Err(error);
    }
    Ok(info.to_string().into())
}

pub(crate) fn unload(name: Option<&str>) -> Result<(), EngineError> {
    session::with_model(|model| {
        let names: Vec<String> = model
            .engine
            .adapters()
            .iter()
            .filter(|known| name.is_none_or(|name| name == known.as_str()))
            .cloned()
            .collect();
        if let (Some(name), true) = (name, names.is_empty()) {
            let known = model.engine.adapters().join(", ");
            return Err(EngineError::new(Code::Internal, format!("no adapter is named `{name}`; attached: {known}")));
        }
        for name in names {
            model.engine.detach(&name);
            ATTACHED.with_borrow_mut(|attached| attached.retain(|info| info["name"] != name));
            FINGERPRINTS.with_borrow_mut(|known| known.remove(&name));
        }
        Ok(())
    })
}

/// The attached adapters; the list is cleared when their model is closed.
pub(crate) fn attached() -> Value {
    ATTACHED.with_borrow(|attached| attached.clone().into())
}

/// What tells the attached adapters from others; their order and names do not matter.
pub(crate) fn fingerprints() -> String {
    let mut found: Vec<String> = FINGERPRINTS.with_borrow(|known| known.values().cloned().collect());
    found.sort_unstable();
    found.join(", ")
}

pub(crate) fn forget() {
    ATTACHED.take();
    FINGERPRINTS.take();
}
