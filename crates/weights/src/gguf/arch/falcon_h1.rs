//! Falcon-H1: attention and Mamba-2 side by side.

use super::super::config::Reader;
use super::super::names::Names;
use super::super::tensors::Values;
use super::{Arch, PLAIN, recurrent};
use crate::error::WeightsError;
use serde_json::{Value, json};

const GLOBALS: Names =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.final_layernorm"), ("output", "lm_head")];

const LAYERS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ssm_in", "mamba.in_proj"),
    ("ssm_conv1d", "mamba.conv1d"),
    ("ssm_dt.bias", "mamba.dt_bias"),
    ("ssm_a", "mamba.A_log"),
    ("ssm_d", "mamba.D"),
    ("ssm_norm", "mamba.norm"),
    ("ssm_out", "mamba.out_proj"),
    // llama.cpp's name table of this architecture has this one without a suffix.
    ("ffn_norm", "pre_ff_layernorm.weight"),
    ("ffn_norm.weight", "pre_ff_layernorm.weight"),
    ("ffn_gate", "feed_forward.gate_proj"),
    ("ffn_up", "feed_forward.up_proj"),
    ("ffn_down", "feed_forward.down_proj"),
];

pub(super) const FALCON_H1: Arch = Arch {
    gguf: "falcon-h1",
    model_types: &["falcon_h1"],
    globals: GLOBALS,
    layers: LAYERS,
    stored: |name, shape| {
        let flat = name.ends_with("mamba.D") || name.ends_with("mamba.norm.weight");
        let flat = flat.then(|| (vec![shape.iter().product()], Values::Same));
        flat.or_else(|| recurrent(name, shape))
    },
    config,
    ..PLAIN
};

/// The converter multiplies the multipliers into the weights, so all are 1 in the configuration.
fn config(reader: &mut Reader<'_>) -> Result<(), WeightsError> {
    reader.set("mamba_rms_norm", json!(reader.has("blk.0.ssm_norm.weight")));
    reader.set("mamba_norm_before_gate", json!(false));
    reader.set("mamba_conv_bias", json!(reader.has("blk.0.ssm_conv1d.bias")));
    for key in ["attention_in", "attention_out", "embedding", "key", "lm_head", "ssm_in", "ssm_out"] {
        reader.set(&format!("{key}_multiplier"), json!(1.0));
    }
    reader.set("mlp_multipliers", json!([1.0, 1.0]));
    reader.set("ssm_multipliers", json!([1.0, 1.0, 1.0, 1.0, 1.0]));
    for (to, from) in [
        ("mamba_d_conv", "ssm.conv_kernel"),
        ("mamba_d_ssm", "ssm.inner_size"),
        ("mamba_d_state", "ssm.state_size"),
        ("mamba_n_heads", "ssm.time_step_rank"),
        ("mamba_n_groups", "ssm.group_count"),
    ] {
        reader.copy(to, from);
    }
    let of = |key: &str| reader.out.get(key).and_then(Value::as_u64).unwrap_or(0);
    let head = of("mamba_d_ssm") / of("mamba_n_heads").max(1);
    reader.set("mamba_d_head", json!(head));
    Ok(())
}
