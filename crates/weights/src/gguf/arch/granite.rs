//! Granite: LLaMA's names, with its multipliers as metadata keys.

use super::{Arch, Exported, Key, PLAIN};
use serde_json::{Value, json};

/// Hugging Face's fields and llama.cpp's keys.
const MULTIPLIERS: [(&str, &str); 4] = [
    ("attention_multiplier", "attention.scale"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("logits_scaling", "logit_scale"),
];

pub(super) const GRANITE: Arch = Arch {
    gguf: "granite",
    model_types: &["granite"],
    interleaved: true,
    config: |reader| {
        reader.set("attention_bias", json!(reader.has("blk.0.attn_q.bias")));
        reader.set("mlp_bias", json!(reader.has("blk.0.ffn_down.bias")));
        MULTIPLIERS.iter().for_each(|(to, from)| reader.copy(to, from));
        Ok(())
    },
    export: Some(|config, _| {
        let key = |(from, to): (&str, &'static str)| {
            let value = config.get(from).and_then(Value::as_f64).unwrap_or(1.0);
            (to, Key::Float(value as f32))
        };
        Ok(Exported { keys: MULTIPLIERS.map(key).to_vec(), factor: None })
    }),
    ..PLAIN
};
