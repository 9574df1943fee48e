//! Command R (`cohere`) and Command R7B (`cohere2`).

use super::super::config::Reader;
use super::written::interval;
use super::{Arch, Change, Exported, Key, Model, PLAIN};
use crate::error::WeightsError;
use serde_json::{Value, json};

/// llama.cpp reads norms of queries and keys of models with at least so many layers, as Command R+ has.
const LAYERS_WITH_NORMS: usize = 64;
/// Every fourth layer of Command R7B has full attention.
const INTERVAL: u32 = 4;

pub(super) const COMMAND_R: Arch = Arch {
    gguf: "command-r",
    model_types: &["cohere"],
    config: |reader| {
        common(reader);
        reader.set("use_qk_norm", json!(reader.has("blk.0.attn_q_norm.weight")));
        Ok(())
    },
    export: |model| {
        let (layers, norms) = (model.layers()?, model.flag("use_qk_norm"));
        if norms != (layers >= LAYERS_WITH_NORMS) {
            return Err(model.refuse(
                &format!("{layers} layers and use_qk_norm = {norms}"),
                &format!("norms of queries and keys in models of {LAYERS_WITH_NORMS} layers or more, and in no others"),
            ));
        }
        let change = |name: &str, _: &[usize]| Change { exact: name.ends_with("_norm.weight"), ..Change::default() };
        Ok(Exported { change: Some(Box::new(change)), ..exported(model)? })
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
    export: |model| {
        let mut exported = exported(model)?;
        exported.keys.push(("attention.sliding_window", Key::Whole(model.size("sliding_window").unwrap_or(4096))));
        let pattern = pattern(model)?;
        if pattern != INTERVAL {
            // Earlier releases of llama.cpp do not read this key; those of its converter's models do not need it.
            exported.keys.push(("attention.sliding_window_pattern", Key::Whole(pattern)));
        }
        Ok(exported)
    },
    ..PLAIN
};

fn common(reader: &mut Reader<'_>) {
    reader.copy("logit_scale", "logit_scale");
    reader.set("attention_bias", json!(reader.has("blk.0.attn_q.bias")));
}

/// What both models have: a scale of the logits, and no rotary scaling. llama.cpp's output head is the embedding.
fn exported(model: &Model<'_>) -> Result<Exported, WeightsError> {
    model.without(&["attention_bias"])?;
    model.without_rotary_scaling()?;
    model.heads_fill_the_hidden_size()?;
    if model.config.get("tie_word_embeddings") == Some(&Value::Bool(false)) {
        return Err(
            model.refuse("tie_word_embeddings = false", "the output head of this architecture as its embedding")
        );
    }
    let scale = model.number("logit_scale").unwrap_or(0.0625);
    let keys = vec![("logit_scale", Key::Float(scale)), ("rope.scaling.type", Key::Text("none"))];
    Ok(Exported { keys, tied: true, ..Exported::default() })
}

/// The interval of the layers with full attention.
fn pattern(model: &Model<'_>) -> Result<u32, WeightsError> {
    let told = ["sliding_window_pattern", "_sliding_window_pattern"].iter().find_map(|key| model.size(key));
    let Some(types) = model.config.get("layer_types").and_then(Value::as_array) else {
        return Ok(told.filter(|pattern| *pattern > 0).unwrap_or(INTERVAL));
    };
    let full: Vec<bool> = types.iter().map(|kind| kind.as_str() != Some("sliding_attention")).collect();
    interval(&full).ok_or_else(|| model.refuse(&format!("layer_types {types:?}"), "full attention on every n-th layer"))
}
