//! LLaMA, and Mistral, which GGUF files also call llama. A sliding window is read and written, although llama.cpp
//! ignores it for this architecture.

use super::{Arch, Exported, Key, PLAIN};
use serde_json::{Value, json};

const WINDOW: &str = "attention.sliding_window";

pub(super) const LLAMA: Arch = Arch {
    gguf: "llama",
    model_types: &["llama", "mistral"],
    interleaved: true,
    config: |reader| {
        reader.set("attention_bias", json!(reader.has("blk.0.attn_q.bias")));
        reader.set("mlp_bias", json!(reader.has("blk.0.ffn_down.bias")));
        if let Some(window) = reader.size(WINDOW) {
            reader.set("model_type", json!("mistral"));
            reader.set("sliding_window", json!(window));
        }
        Ok(())
    },
    export: |model| {
        let config = model.config;
        let window = config.get("sliding_window").filter(|_| config.get("model_type") == Some(&json!("mistral")));
        let window = window.and_then(Value::as_u64).and_then(|window| u32::try_from(window).ok());
        Ok(Exported {
            keys: window.map(|window| (WINDOW, Key::Whole(window))).into_iter().collect(),
            ..Exported::default()
        })
    },
    ..PLAIN
};
