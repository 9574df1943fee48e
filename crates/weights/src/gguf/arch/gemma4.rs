//! Gemma 4 (text). Keys that differ between layers are lists; the divisors of the rotary frequencies, which are huge
//! for the pairs that stand still, are those of the layers that attend to all positions.

use super::super::config::{Reader, short};
use super::super::names::Names;
use super::gemma::activation;
use super::{Arch, PLAIN};
use crate::error::WeightsError;
use serde_json::{Value, json};

const GLOBALS: Names = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("per_layer_token_embd", "model.embed_tokens_per_layer"),
    ("per_layer_model_proj", "model.per_layer_model_projection"),
    ("per_layer_proj_norm", "model.per_layer_projection_norm"),
];

const LAYERS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("inp_gate", "per_layer_input_gate"),
    ("proj", "per_layer_projection"),
    ("post_norm", "post_per_layer_input_norm"),
    ("layer_output_scale.weight", "layer_scalar"),
];

pub(super) const GEMMA4: Arch =
    Arch { gguf: "gemma4", model_types: &["gemma4_text"], globals: GLOBALS, layers: LAYERS, config, ..PLAIN };

fn config(reader: &mut Reader<'_>) -> Result<(), WeightsError> {
    activation(reader);
    if reader.has("blk.0.ffn_gate_inp.weight") {
        return Err(WeightsError::Unsupported {
            what: format!("{}: a mixture of experts in the architecture \"gemma4\"", reader.file),
            remedy: "take one of the dense models".to_owned(),
        });
    }
    let layers = reader.size("block_count").unwrap_or(0);
    let local = reader.flags("attention.sliding_window_pattern").unwrap_or_default();
    if local.len() as u64 != layers {
        return Err(WeightsError::malformed(
            reader.file,
            format!(
                "expected {:?} with true or false for each of the {layers} layers, found {}",
                reader.key("attention.sliding_window_pattern"),
                local.len()
            ),
        ));
    }
    let kind = |local: bool| if local { "sliding_attention" } else { "full_attention" };
    let types: Vec<&str> = local.iter().map(|&local| kind(local)).collect();
    reader.set("layer_types", json!(types));
    reader.copy("sliding_window", "attention.sliding_window");
    let cap = reader.number("final_logit_softcapping").map(short);
    reader.set("final_logit_softcapping", json!(cap));
    reader.set("hidden_size_per_layer_input", json!(reader.size("embedding_length_per_layer_input").unwrap_or(0)));
    let vocabulary = reader.out.get("vocab_size").cloned().unwrap_or(Value::Null);
    reader.set("vocab_size_per_layer_input", vocabulary);
    reader.set("num_kv_shared_layers", json!(reader.size("attention.shared_kv_layers").unwrap_or(0)));
    reader.set("attention_bias", json!(reader.has("blk.0.attn_q.bias")));

    // The common keys are those of the layers that attend to all positions.
    reader.copy("global_head_dim", "attention.key_length");
    reader.copy("head_dim", "attention.key_length_swa");
    if let Some(heads) = reader.sizes("attention.head_count_kv") {
        let of = |wanted: bool| local.iter().zip(heads).find(|(local, _)| **local == wanted).map(|(_, heads)| *heads);
        let (local_heads, global_heads) = (of(true), of(false));
        reader.set("num_key_value_heads", json!(local_heads.or(global_heads)));
        reader.set("num_global_key_value_heads", json!(global_heads));
    }
    // Where the keys are also the values, layers with full attention have no matrix of values.
    let has_keys = |layer: u64| reader.has(&format!("blk.{layer}.attn_k.weight"));
    let has_values = |layer: u64| reader.has(&format!("blk.{layer}.attn_v.weight"));
    let same_values = (0..layers).zip(&local).any(|(layer, local)| !local && has_keys(layer) && !has_values(layer));
    reader.set("attention_k_eq_v", json!(same_values));
    if let Some(widths) = reader.sizes("feed_forward_length") {
        let least = widths.iter().copied().min();
        reader.set("use_double_wide_mlp", json!(least != widths.iter().copied().max()));
        reader.set("intermediate_size", json!(least));
    }
    let theta = |key: &str, default: f64| short(reader.number(key).unwrap_or(default));
    let mut full = json!({"rope_type": "default", "rope_theta": theta("rope.freq_base", 1e6)});
    if let Some(factors) = reader.rope_factors() {
        full["rope_type"] = json!("frequency_factors");
        full["factors"] = json!(factors);
    }
    let sliding = json!({"rope_type": "default", "rope_theta": theta("rope.freq_base_swa", 1e4)});
    reader.set("rope_parameters", json!({"full_attention": full, "sliding_attention": sliding}));
    Ok(())
}
