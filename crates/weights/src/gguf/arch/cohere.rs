//! Command R (`cohere`) and Command R7B (`cohere2`).

use super::super::config::Reader;
use super::{Arch, PLAIN};
use serde_json::json;

pub(super) const COMMAND_R: Arch = Arch {
    gguf: "command-r",
    model_types: &["cohere"],
    config: |reader| {
        common(reader);
        reader.set("use_qk_norm", json!(reader.has("blk.0.attn_q_norm.weight")));
        Ok(())
    },
    ..PLAIN
};

pub(super) const COHERE2: Arch = Arch {
    gguf: "cohere2",
    model_types: &["cohere2"],
    config: |reader| {
        common(reader);
        reader.copy("sliding_window", "attention.sliding_window");
        let pattern = reader.size("attention.sliding_window_pattern").unwrap_or(4);
        reader.set("sliding_window_pattern", json!(pattern));
        Ok(())
    },
    ..PLAIN
};

fn common(reader: &mut Reader<'_>) {
    reader.copy("logit_scale", "logit_scale");
    reader.set("attention_bias", json!(reader.has("blk.0.attn_q.bias")));
}
