//! LFM2: gated short convolutions, with attention in the layers that have key-value heads.

use super::super::config::Reader;
use super::super::names::Names;
use super::super::tensors::Values;
use super::{Arch, PLAIN};
use crate::error::WeightsError;
use serde_json::json;

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
