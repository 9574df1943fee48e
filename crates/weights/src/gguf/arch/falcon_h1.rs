//! Falcon-H1: attention and Mamba-2 side by side.

use super::super::config::Reader;
use super::super::names::Names;
use super::super::tensors::Values;
use super::{Arch, Change, Exported, Key, Model, PLAIN, recurrent, recurrent_change};
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
    // llama.cpp's name table of this architecture has this one without a suffix; it is written so.
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
    export,
    changed_pairs: &["_proj", "lm_head"],
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

/// The multipliers are multiplied into the weights. An output head that is the embedding has another multiplier than
/// the embedding, so that it is written as a matrix of its own.
fn export(model: &Model<'_>) -> Result<Exported, WeightsError> {
    model.without(&["attention_bias", "mlp_bias", "mamba_proj_bias", "projectors_bias"])?;
    model.without_rotary_scaling()?;
    if model.flag("mamba_rms_norm") && model.config.get("mamba_norm_before_gate") != Some(&Value::Bool(false)) {
        return Err(model.refuse("mamba_norm_before_gate = true", "the gate before the norm"));
    }
    let of = |key: &str| model.number(key).unwrap_or(1.0);
    let numbers = |key: &str, count: usize| -> Result<Vec<f32>, WeightsError> {
        let Some(value) = model.config.get(key).filter(|value| !value.is_null()) else { return Ok(vec![1.0; count]) };
        let list: Vec<f32> =
            value.as_array().into_iter().flatten().filter_map(Value::as_f64).map(|n| n as f32).collect();
        let bad = || WeightsError::malformed("config.json", format!("expected {count} numbers under {key:?}"));
        if list.len() == count { Ok(list) } else { Err(bad()) }
    };
    let expanded = model.size("mamba_expand").unwrap_or(2).saturating_mul(model.require("hidden_size")?);
    let inner = model.size("mamba_d_ssm").unwrap_or(expanded);
    let (groups, state) = (model.size("mamba_n_groups").unwrap_or(1), model.require("mamba_d_state")?);
    let keys = vec![
        ("ssm.conv_kernel", Key::Whole(model.size("mamba_d_conv").unwrap_or(4))),
        ("ssm.inner_size", Key::Whole(inner)),
        ("ssm.state_size", Key::Whole(state)),
        ("ssm.time_step_rank", Key::Whole(model.require("mamba_n_heads")?)),
        ("ssm.group_count", Key::Whole(groups)),
    ];
    let (mlp, parts) = (numbers("mlp_multipliers", 2)?, numbers("ssm_multipliers", 5)?);
    let (into, head) = (of("attention_in_multiplier"), of("lm_head_multiplier"));
    let factors = [
        ("model.embed_tokens.weight", of("embedding_multiplier")),
        ("lm_head.weight", head),
        ("self_attn.q_proj.weight", into),
        ("self_attn.k_proj.weight", into * of("key_multiplier")),
        ("self_attn.v_proj.weight", into),
        ("self_attn.o_proj.weight", of("attention_out_multiplier")),
        ("feed_forward.gate_proj.weight", mlp[0]),
        ("feed_forward.down_proj.weight", mlp[1]),
        ("mamba.out_proj.weight", of("ssm_out_multiplier")),
    ];
    // The gate, the values, both projections of the state, and the time steps.
    let (inner, shared, into) = (inner as usize, groups as usize * state as usize, of("ssm_in_multiplier"));
    let ends = [inner, 2 * inner, 2 * inner + shared, 2 * inner + 2 * shared, usize::MAX];
    let parts: Vec<(usize, f32)> = ends.into_iter().zip(parts).map(|(end, part)| (end, part * into)).collect();
    let change = move |name: &str, shape: &[usize]| {
        if let Some((_, factor)) = factors.iter().find(|(ending, factor)| name.ends_with(ending) && *factor != 1.0) {
            return Change::factor(*factor);
        }
        let parts = || if parts.iter().all(|(_, factor)| *factor == 1.0) { Vec::new() } else { parts.clone() };
        let column = |shape: &[usize]| Some(vec![shape.iter().product(), 1]);
        let all = Change::default();
        match name {
            _ if name.ends_with("mamba.in_proj.weight") => Change { factors: parts(), ..all },
            _ if name.ends_with("mamba.A_log") => {
                Change { shape: column(shape), exact: true, ..recurrent_change(name, shape) }
            }
            _ if name.ends_with("mamba.D") => Change { shape: column(shape), exact: true, ..all },
            _ if name.ends_with("mamba.norm.weight") => {
                let groups = groups.max(1) as usize;
                Change { shape: Some(vec![groups, inner / groups]), exact: true, ..all }
            }
            _ => recurrent_change(name, shape),
        }
    };
    let tied = model.flag("tie_word_embeddings");
    Ok(Exported { keys, change: Some(Box::new(change)), head: tied.then_some(head), ..Exported::default() })
}
