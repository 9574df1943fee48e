//! Jais 2: LLaMA's names, with LayerNorm and biases, and an MLP without gate. Rows of q and k are in Hugging Face's
//! order.

use super::{Arch, PLAIN};
use serde_json::json;

pub(super) const JAIS2: Arch = Arch {
    gguf: "jais2",
    model_types: &["jais2"],
    config: |reader| {
        reader.set("hidden_act", json!("relu2"));
        reader.set("attention_bias", json!(reader.has("blk.0.attn_q.bias")));
        reader.set("mlp_bias", json!(reader.has("blk.0.ffn_down.bias")));
        Ok(())
    },
    ..PLAIN
};
