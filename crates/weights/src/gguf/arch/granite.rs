//! Granite: LLaMA's names, with its multipliers as metadata keys.

use super::{Arch, Exported, Key, PLAIN};
use serde_json::json;

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
    export: |model| {
        let key = |(from, to): (&str, &'static str)| {
            let value = model.number(from).unwrap_or(1.0);
            (to, Key::Float(value))
        };
        Ok(Exported { keys: MULTIPLIERS.map(key).to_vec(), ..Exported::default() })
    },
    ..PLAIN
};
