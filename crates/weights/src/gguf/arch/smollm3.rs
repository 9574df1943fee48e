//! SmolLM3: LLaMA's names. It has no key for it, but llama.cpp leaves out rotary positions in every fourth layer.

use super::{Arch, Exported, PLAIN};
use crate::error::WeightsError;
use serde_json::{Value, json};

/// Interval of the layers without rotary positions.
const INTERVAL: u64 = 4;

pub(super) const SMOLLM3: Arch = Arch {
    gguf: "smollm3",
    model_types: &["smollm3"],
    interleaved: true,
    config: |reader| {
        reader.set("attention_bias", json!(reader.has("blk.0.attn_q.bias")));
        reader.set("mlp_bias", json!(reader.has("blk.0.ffn_down.bias")));
        reader.set("no_rope_layer_interval", json!(INTERVAL));
        Ok(())
    },
    export: |model| {
        let config = model.config;
        let refuse = |what: String| WeightsError::Unsupported {
            what: format!("writing a smollm3 model with {what} as GGUF"),
            remedy: format!("llama.cpp has rotary positions on all but every {INTERVAL}th layer, and no windows"),
        };
        let rotates = |layer: u64| u64::from(!(layer + 1).is_multiple_of(INTERVAL));
        let layers = config.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0);
        match config.get("no_rope_layers").and_then(Value::as_array) {
            Some(list) => {
                let follows = (0..layers).zip(list).all(|(layer, flag)| flag.as_u64() == Some(rotates(layer)));
                if !follows {
                    return Err(refuse(format!("no_rope_layers {list:?}")));
                }
            }
            None => {
                let interval = config.get("no_rope_layer_interval").and_then(Value::as_u64).unwrap_or(INTERVAL);
                if interval != INTERVAL {
                    return Err(refuse(format!("no_rope_layer_interval {interval}")));
                }
            }
        }
        if config.get("use_sliding_window") == Some(&Value::Bool(true)) {
            return Err(refuse("use_sliding_window".to_owned()));
        }
        Ok(Exported::default())
    },
    ..PLAIN
};
