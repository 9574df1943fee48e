//! Jais: GPT-2's layout with ALiBi and a gated MLP.

use super::super::config::Reader;
use super::super::names::Names;
use super::{Arch, PLAIN};
use crate::error::WeightsError;
use serde_json::json;

const GLOBALS: Names = &[("token_embd", "transformer.wte"), ("output_norm", "transformer.ln_f"), ("output", "lm_head")];

const LAYERS: Names = &[
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_gate", "mlp.c_fc2"),
    ("ffn_down", "mlp.c_proj"),
];

pub(super) const JAIS: Arch = Arch {
    gguf: "jais",
    model_types: &["jais"],
    globals: GLOBALS,
    layer_prefix: "transformer.h.",
    layers: LAYERS,
    config,
    ..PLAIN
};

/// The converter multiplies the embedding and output scales into the weights, and writes matrices as [out, in].
fn config(reader: &mut Reader<'_>) -> Result<(), WeightsError> {
    if let Some(bias) = reader.number("attention.max_alibi_bias").filter(|bias| *bias != 8.0) {
        return Err(WeightsError::Unsupported {
            what: format!("{}: the slopes of ALiBi from a greatest bias of {bias}", reader.file),
            remedy: "expected 8, as in every published model; take the safetensors checkpoint".to_owned(),
        });
    }
    for (to, from) in [
        ("n_embd", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_inner", "intermediate_size"),
        ("n_positions", "max_position_embeddings"),
        ("layer_norm_epsilon", "layer_norm_eps"),
    ] {
        if let Some(value) = reader.out.get(from).cloned() {
            reader.set(to, value);
        }
    }
    reader.set("activation_function", json!("swiglu"));
    reader.set("position_embedding_type", json!("alibi"));
    reader.set("mup_embeddings_scale", json!(1.0));
    reader.set("mup_output_alpha", json!(1.0));
    reader.set("mup_width_scale", json!(1.0));
    reader.set("mup_scale_qk_dot_by_d", json!(true));
    reader.set(crate::checkpoint::TRANSPOSED_KEY, json!(true));
    Ok(())
}
