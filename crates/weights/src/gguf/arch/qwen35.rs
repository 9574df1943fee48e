//! Qwen 3.5 (text). The converter orders the value heads of the gated delta rule differently where a key head serves
//! several: the n-th of each key head together. The model reads them in that
//! order, and they are written in it.

use super::super::config::Reader;
use super::super::names::Names;
use super::super::tensors::Values;
use super::written::{Heads, interval};
use super::{Arch, Change, Exported, Key, Model, PLAIN, recurrent, recurrent_change};
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
    export,
    changed_pairs: &[
        "linear_attn.in_proj_qkv",
        "linear_attn.in_proj_z",
        "linear_attn.in_proj_b",
        "linear_attn.in_proj_a",
        "linear_attn.out_proj",
    ],
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

/// Rotated part of a head where the configuration does not say.
const ROTATED: f64 = 0.25;

fn export(model: &Model<'_>) -> Result<Exported, WeightsError> {
    model.without(&["attention_bias"])?;
    model.without_rotary_scaling()?;
    let of = |key: &str, default: u32| model.size(key).unwrap_or(default);
    let (key_dim, value_dim) = (of("linear_key_head_dim", 128), of("linear_value_head_dim", 128));
    if key_dim != value_dim {
        let what = format!("linear_key_head_dim {key_dim} and linear_value_head_dim {value_dim}");
        return Err(model.refuse(&what, "heads of keys and values of one size"));
    }
    let (key_heads, heads) = (of("linear_num_key_heads", 16), of("linear_num_value_heads", 32));
    if key_heads == 0 || value_dim == 0 || !heads.is_multiple_of(key_heads) {
        let what = format!("{heads} value heads of {value_dim} for {key_heads} key heads");
        return Err(model.refuse(&what, "whole numbers of value heads for each key head"));
    }
    let attends = |layer| model.shape(&format!("model.layers.{layer}.self_attn.q_proj.weight")).is_some();
    let full: Vec<bool> = (0..model.layers()?).map(attends).collect();
    let irregular = || model.refuse(&format!("attention in the layers {full:?}"), "attention in every n-th layer");
    let interval = interval(&full).ok_or_else(irregular)?;
    let rotated = model.rotated(ROTATED);
    let inner = heads.saturating_mul(value_dim);
    let keys = vec![
        ("ssm.conv_kernel", Key::Whole(of("linear_conv_kernel_dim", 4))),
        ("ssm.state_size", Key::Whole(key_dim)),
        ("ssm.group_count", Key::Whole(key_heads)),
        ("ssm.time_step_rank", Key::Whole(heads)),
        ("ssm.inner_size", Key::Whole(inner)),
        ("full_attention_interval", Key::Whole(interval)),
        ("rope.dimension_count", Key::Whole(rotated as u32)),
        ("rope.dimension_sections", Key::Wholes(sections(model, rotated / 2)?)),
    ];
    let grouped = heads != key_heads && !model.flag("linear_value_heads_tiled");
    let (key_heads, each) = (key_heads as usize, (heads / key_heads) as usize);
    let (keys_width, run) = (2 * key_heads * key_dim as usize, value_dim as usize);
    let change = move |name: &str, shape: &[usize]| {
        let change = recurrent_change(name, shape);
        let order = |first: usize, run: usize| grouped.then_some(Heads { first, run, key_heads, each });
        match name.split_once(".linear_attn.").map(|(_, part)| part) {
            Some("in_proj_qkv.weight" | "conv1d.weight") => Change { rows: order(keys_width, run), ..change },
            Some("in_proj_z.weight") => Change { rows: order(0, run), ..change },
            Some("in_proj_a.weight" | "in_proj_b.weight" | "A_log" | "dt_bias") => {
                Change { rows: order(0, 1), ..change }
            }
            Some("out_proj.weight") => Change { columns: order(0, run), ..change },
            Some("norm.weight") => Change { whole_norm: true, ..change },
            _ => change,
        }
    };
    Ok(Exported { keys, change: Some(Box::new(change)), ..Exported::default() })
}

/// How many rotated pairs take the position in time, in height, in width: a text has the same position in all three.
/// Together they must be all pairs, because llama.cpp gives others the position 0.
fn sections(model: &Model<'_>, pairs: usize) -> Result<Vec<i32>, WeightsError> {
    let told = model.rotary().and_then(|rope| rope.get("mrope_section")).and_then(Value::as_array);
    let Some(told) = told else {
        return Ok([pairs.div_ceil(3), (pairs + 1) / 3, pairs / 3, 0].map(|count| count as i32).to_vec());
    };
    let list: Vec<u64> = told.iter().filter_map(Value::as_u64).collect();
    if list.len() != 3 || list.iter().try_fold(0u64, |sum, n| sum.checked_add(*n)) != Some(pairs as u64) {
        return Err(
            model.refuse(&format!("mrope_section {told:?}"), &format!("three sections of {pairs} rotated pairs"))
        );
    }
    Ok(list.iter().map(|&n| n as i32).chain([0]).collect())
}
