//! Qwen 3.5 (text). The converter orders the value heads of the gated delta rule differently where a key head serves
//! several: the n-th of each key head together. The model reads them in that order.

use super::super::config::Reader;
use super::super::names::Names;
use super::super::tensors::Values;
use super::{Arch, PLAIN, recurrent};
use crate::error::WeightsError;
use serde_json::{Value, json};

const LAYERS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_qkv", "linear_attn.in_proj_qkv"),
    ("attn_gate", "linear_attn.in_proj_z"),
    ("ssm_beta", "linear_attn.in_proj_b"),
    ("ssm_alpha", "linear_attn.in_proj_a"),
    ("ssm_conv1d", "linear_attn.conv1d"),
    ("ssm_dt.bias", "linear_attn.dt_bias"),
    ("ssm_a", "linear_attn.A_log"),
    ("ssm_norm", "linear_attn.norm"),
    ("ssm_out", "linear_attn.out_proj"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

pub(super) const QWEN35: Arch = Arch {
    gguf: "qwen35",
    model_types: &["qwen3_5_text"],
    layers: LAYERS,
    norm_plus_one: true,
    stored: |name, shape| {
        // The only norm that is stored whole.
        let whole = name.ends_with("linear_attn.norm.weight").then(|| (shape.to_vec(), Values::Same));
        whole.or_else(|| recurrent(name, shape))
    },
    config,
    ..PLAIN
};

fn config(reader: &mut Reader<'_>) -> Result<(), WeightsError> {
    for (to, from) in [
        ("linear_conv_kernel_dim", "ssm.conv_kernel"),
        ("linear_key_head_dim", "ssm.state_size"),
        ("linear_num_key_heads", "ssm.group_count"),
        ("linear_num_value_heads", "ssm.time_step_rank"),
    ] {
        reader.copy(to, from);
    }
    let of = |key: &str| reader.out.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (key_heads, heads, layers) =
        (of("linear_num_key_heads"), of("linear_num_value_heads"), of("num_hidden_layers"));
    if let Some(inner) = reader.size("ssm.inner_size") {
        reader.set("linear_value_head_dim", json!(inner / heads.max(1)));
    }
    reader.set("linear_value_heads_tiled", json!(heads != key_heads));
    reader.set("attention_bias", json!(reader.has("blk.0.attn_q.bias")));
    // The layers themselves say which of them have attention, whatever the interval.
    let attends = |layer: u64| reader.has(&format!("blk.{layer}.attn_q.weight"));
    let kind = |layer: u64| if attends(layer) { "full_attention" } else { "linear_attention" };
    let types: Vec<&str> = (0..layers.min(10_000)).map(kind).collect();
    reader.set("layer_types", json!(types));
    Ok(())
}
