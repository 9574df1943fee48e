//! Gemma 1 to 3 (text). The converter drops the scale of the queries: it follows from the head size, except in the 27B
//! models, which llama.cpp recognizes by their number of layers.

use super::super::config::{Reader, short};
use super::super::names::FOUR_NORMS;
use super::written::{ChangeOf, interval};
use super::{Arch, Change, Exported, Key, Model, PLAIN};
use crate::error::WeightsError;
use serde_json::{Value, json};

/// Number of layers of the 27B models.
const GEMMA2_27B: u64 = 46;
const GEMMA3_27B: u64 = 62;

pub(super) const GEMMA: Arch = Arch {
    gguf: "gemma",
    model_types: &["gemma"],
    norm_plus_one: true,
    config: |reader| {
        activation(reader);
        Ok(())
    },
    export: |model| Ok(Exported { keys: keys(model.config), ..Exported::default() }),
    ..PLAIN
};

pub(super) const GEMMA2: Arch = Arch {
    gguf: "gemma2",
    model_types: &["gemma2"],
    layers: FOUR_NORMS,
    norm_plus_one: true,
    config: |reader| {
        activation(reader);
        window_and_scale(reader, GEMMA2_27B);
        Ok(())
    },
    export: |model| {
        let change = query_change(model, GEMMA2_27B, ".q_proj.weight");
        Ok(Exported { keys: keys(model.config), change, ..Exported::default() })
    },
    ..PLAIN
};

pub(super) const GEMMA3: Arch = Arch {
    gguf: "gemma3",
    model_types: &["gemma3_text"],
    layers: FOUR_NORMS,
    norm_plus_one: true,
    config: |reader| {
        activation(reader);
        window_and_scale(reader, GEMMA3_27B);
        let local = reader.number("rope.freq_base_swa").unwrap_or(10_000.0);
        reader.set("rope_local_base_freq", json!(short(local)));
        let pattern = reader.size("attention.sliding_window_pattern").unwrap_or(6);
        reader.set("sliding_window_pattern", json!(pattern));
        Ok(())
    },
    export: |model| {
        let config = model.config;
        let number = |value: Option<&Value>| value.and_then(Value::as_f64).map(|n| n as f32);
        let local = number(config.pointer("/rope_parameters/sliding_attention/rope_theta"))
            .or(number(config.get("rope_local_base_freq")));
        let mut keys = keys(config);
        keys.push(("rope.freq_base_swa", Key::Float(local.unwrap_or(10_000.0))));
        keys.push(("attention.sliding_window_pattern", Key::Whole(window_pattern(config)?)));
        let change = query_change(model, GEMMA3_27B, ".q_norm.weight");
        Ok(Exported { keys, change, ..Exported::default() })
    },
    ..PLAIN
};

pub(super) fn activation(reader: &mut Reader<'_>) {
    for key in ["hidden_act", "hidden_activation"] {
        reader.set(key, json!("gelu_pytorch_tanh"));
    }
}

fn window_and_scale(reader: &mut Reader<'_>, layers_of_27b: u64) {
    reader.copy("sliding_window", "attention.sliding_window");
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        let cap = reader.number(key).map(short);
        reader.set(key, json!(cap));
    }
    let of = |key: &str| reader.out.get(key).and_then(Value::as_u64).unwrap_or(0);
    let is_27b = of("num_hidden_layers") == layers_of_27b;
    let scalar = if is_27b { of("hidden_size") / of("num_attention_heads").max(1) } else { reader.head_dim() };
    reader.set("query_pre_attn_scalar", json!(scalar));
}

fn keys(config: &Value) -> Vec<(&'static str, Key)> {
    let mut keys = Vec::new();
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        let cap = config.get(key).and_then(Value::as_f64);
        keys.extend(cap.map(|cap| (key, Key::Float(cap as f32))));
    }
    let window = config.get("sliding_window").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    keys.extend(window.map(|window| ("attention.sliding_window", Key::Whole(window))));
    keys
}

/// The interval of the layers with full attention: given as a number, or derived from a regular list of layer types.
fn window_pattern(config: &Value) -> Result<u32, WeightsError> {
    let told = ["sliding_window_pattern", "_sliding_window_pattern"].iter().find_map(|key| config.get(*key)?.as_u64());
    let told = told.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    let Some(types) = config.get("layer_types").and_then(Value::as_array) else { return Ok(told.unwrap_or(6)) };
    let full: Vec<bool> = types.iter().map(|kind| kind.as_str() == Some("full_attention")).collect();
    interval(&full).ok_or_else(|| WeightsError::Unsupported {
        what: format!("writing layer_types {types:?} as GGUF"),
        remedy: "llama.cpp's form of this architecture has full attention on every n-th layer".to_owned(),
    })
}

/// The factor on the queries, needed because llama.cpp derives the scale of the attention scores from the head size
/// (except in the 27B models). It is applied to the query norm where there is one, otherwise to the query projection.
fn query_change(model: &Model<'_>, layers_of_27b: u64, ending: &'static str) -> Option<ChangeOf> {
    let of = |key: &str| model.config.get(key).and_then(Value::as_u64).unwrap_or(0);
    let scalar = model.config.get("query_pre_attn_scalar").and_then(Value::as_f64).filter(|scalar| *scalar > 0.0)?;
    let is_27b = of("num_hidden_layers") == layers_of_27b;
    let hidden = of("hidden_size") as f64;
    let built_in = if is_27b { hidden / of("num_attention_heads").max(1) as f64 } else { model.head_dim as f64 };
    let factor = (built_in / scalar).sqrt() as f32;
    let change = move |name: &str, _: &[usize]| match name.ends_with(ending) {
        true => Change::factor(factor),
        false => Change::default(),
    };
    (factor != 1.0).then(|| Box::new(change) as ChangeOf)
}
