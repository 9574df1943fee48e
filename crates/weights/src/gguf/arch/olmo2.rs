//! OLMo 2: norms after attention and after the MLP, named as in Gemma 2.

use super::super::names::FOUR_NORMS;
use super::{Arch, Exported, PLAIN};
use serde_json::Value;

pub(super) const OLMO2: Arch = Arch {
    gguf: "olmo2",
    model_types: &["olmo2"],
    layers: FOUR_NORMS,
    export: |model| {
        model.without(&["attention_bias"])?;
        model.without_rotary_scaling()?;
        model.heads_fill_the_hidden_size()?;
        // llama.cpp needs an output head of its own.
        let tied = model.config.get("tie_word_embeddings") == Some(&Value::Bool(true));
        Ok(Exported { head: tied.then_some(1.0), ..Exported::default() })
    },
    ..PLAIN
};
