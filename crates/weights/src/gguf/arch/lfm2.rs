//! LFM2: gated short convolutions, with attention in the layers that have key-value heads.

use super::super::config::Reader;
use super::super::names::Names;
use super::super::tensors::Values;
use super::{Arch, Change, Exported, Key, Model, PLAIN};
use crate::error::WeightsError;
use serde_json::{Value, json};

const GLOBALS: Names = &[
    ("token_embd", "model.embed_tokens"),
    ("token_embd_norm", "model.embedding_norm"),
    ("output_norm", "model.embedding_norm"),
    ("output", "lm_head"),
];

const LAYERS: Names = &[
    ("attn_norm", "operator_norm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.out_proj"),
    ("attn_q_norm", "self_attn.q_layernorm"),
    ("attn_k_norm", "self_attn.k_layernorm"),
    ("shortconv.in_proj", "conv.in_proj"),
    ("shortconv.conv", "conv.conv"),
    ("shortconv.out_proj", "conv.out_proj"),
    ("ffn_norm", "ffn_norm"),
    ("ffn_gate", "feed_forward.w1"),
    ("ffn_down", "feed_forward.w2"),
    ("ffn_up", "feed_forward.w3"),
];

pub(super) const LFM2: Arch = Arch {
    gguf: "lfm2",
    model_types: &["lfm2"],
    globals: GLOBALS,
    layers: LAYERS,
    stored: |name, shape| {
        let [channels, .., kernel] = *shape else { return None };
        name.ends_with("conv.conv.weight").then(|| (vec![channels, 1, kernel], Values::Same))
    },
    config,
    export,
    ..PLAIN
};

fn config(reader: &mut Reader<'_>) -> Result<(), WeightsError> {
    reader.copy("conv_L_cache", "shortconv.l_cache");
    reader.set("conv_bias", json!(false));
    reader.set("block_auto_adjust_ff_dim", json!(false));
    if let Some(eps) = reader.out.get("rms_norm_eps").cloned() {
        reader.set("norm_eps", eps);
    }
    if let Some(counts) = reader.header.integers(&reader.key("attention.head_count_kv")) {
        let kinds: Vec<&str> = counts.iter().map(|&n| if n > 0 { "full_attention" } else { "conv" }).collect();
        reader.set("layer_types", json!(kinds));
    }
    Ok(())
}

/// Layers with a convolution have no key-value heads.
fn export(model: &Model<'_>) -> Result<Exported, WeightsError> {
    model.without(&["conv_bias"])?;
    model.without_rotary_scaling()?;
    model.heads_fill_the_hidden_size()?;
    let heads = model.size("num_key_value_heads").unwrap_or(model.require("num_attention_heads")?) as i32;
    let attends = |layer: usize| model.shape(&format!("model.layers.{layer}.self_attn.q_proj.weight")).is_some();
    let counts = (0..model.layers()?).map(|layer| if attends(layer) { heads } else { 0 }).collect();
    // The configuration may hold this size before it is multiplied and rounded up.
    let width = model.rows("model.layers.0.feed_forward.w1.weight")? as u32;
    let keys = vec![
        ("attention.head_count_kv", Key::Wholes(counts)),
        ("feed_forward_length", Key::Whole(width)),
        ("shortconv.l_cache", Key::Whole(model.size("conv_L_cache").unwrap_or(3))),
        ("attention.layer_norm_rms_epsilon", Key::Float(model.number("norm_eps").unwrap_or(1e-5))),
    ];
    let change = |name: &str, shape: &[usize]| match shape {
        [channels, .., kernel] if name.ends_with("conv.conv.weight") => {
            Change { shape: Some(vec![*channels, *kernel]), exact: true, ..Change::default() }
        }
        _ => Change::default(),
    };
    let tied = ["tie_embedding", "tie_word_embeddings"].iter().find_map(|key| model.config.get(*key));
    let tied = tied.and_then(Value::as_bool).unwrap_or(true);
    Ok(Exported { keys, change: Some(Box::new(change)), tied, ..Exported::default() })
}
