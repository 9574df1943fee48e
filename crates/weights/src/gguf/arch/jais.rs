//! Jais: GPT-2's layout with ALiBi and a gated MLP.

use super::super::config::Reader;
use super::super::names::Names;
use super::{Arch, Change, Exported, Key, Model, PLAIN};
use crate::error::WeightsError;
use serde_json::{Value, json};

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
    export,
    changed_pairs: &["lm_head"],
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

/// llama.cpp divides the scores by the head size, and needs an output head of its own.
fn export(model: &Model<'_>) -> Result<Exported, WeightsError> {
    if !model.flag("scale_qk_dot_by_d") && !model.flag("mup_scale_qk_dot_by_d") {
        let expected = "scores of this architecture divided by the head size";
        return Err(model.refuse("scores that are divided by the root of the head size", expected));
    }
    if let Some(scaling) = model.config.get("alibi_scaling").filter(|value| !value.is_null()) {
        return Err(model.refuse(&format!("alibi_scaling {scaling}"), "ALiBi without scaling"));
    }
    let text = |key: &str| model.config.get(key).and_then(Value::as_str).unwrap_or("none");
    for (key, expected) in [("position_embedding_type", "alibi"), ("activation_function", "swiglu")] {
        if text(key) != expected {
            return Err(model.refuse(&format!("{key} {:?}", text(key)), &format!("{expected} only")));
        }
    }
    let embeddings = model.number("embeddings_scale").or(model.number("mup_embeddings_scale")).unwrap_or(1.0);
    let of = |key: &str| model.number(key).unwrap_or(1.0);
    let head = model.number("width_scale").unwrap_or(of("mup_output_alpha") * of("mup_width_scale"));
    let tied = model.config.get("tie_word_embeddings") != Some(&Value::Bool(false));
    let change = move |name: &str, _: &[usize]| match name {
        "transformer.wte.weight" if embeddings != 1.0 => Change::factor(embeddings),
        "lm_head.weight" if head != 1.0 => Change::factor(head),
        _ => Change::default(),
    };
    Ok(Exported {
        keys: vec![
            ("attention.max_alibi_bias", Key::Float(8.0)),
            ("rope.freq_base", Key::Absent),
            ("rope.dimension_count", Key::Absent),
        ],
        change: Some(Box::new(change)),
        head: tied.then_some(head),
        tied,
        ..Exported::default()
    })
}
