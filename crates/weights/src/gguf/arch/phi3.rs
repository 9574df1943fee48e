//! Phi-3: one projection for queries, keys and values, and one for gate and up. Its window is read and written,
//! although llama.cpp ignores it for this architecture; a window of 0 is none.

use super::super::names::Names;
use super::{Arch, Exported, Key, Model, PLAIN};
use crate::error::WeightsError;
use serde_json::Value;

const LAYERS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

pub(super) const PHI3: Arch = Arch {
    gguf: "phi3",
    model_types: &["phi3"],
    layers: LAYERS,
    config: |reader| {
        if reader.size("attention.sliding_window") != Some(0) {
            reader.copy("sliding_window", "attention.sliding_window");
        }
        Ok(())
    },
    export,
    ..PLAIN
};

fn export(model: &Model<'_>) -> Result<Exported, WeightsError> {
    model.heads_fill_the_hidden_size()?;
    let context = model.size("max_position_embeddings").unwrap_or(2048);
    let original = model.rotary().and_then(|rope| rope.get("original_max_position_embeddings")).and_then(Value::as_u64);
    let original = original.and_then(|n| u32::try_from(n).ok()).or(model.size("original_max_position_embeddings"));
    let original = original.unwrap_or(context).max(1);
    let rotated = model.rotated(1.0);
    let mut keys = vec![
        ("rope.scaling.original_context_length", Key::Whole(original)),
        ("rope.dimension_count", Key::Whole(rotated as u32)),
        ("attention.sliding_window", Key::Whole(model.size("sliding_window").unwrap_or(0))),
    ];
    let kind = model.rotary_kind();
    if !matches!(kind, "longrope" | "su") {
        model.without_rotary_scaling()?;
        return Ok(Exported { keys, own_rotary: true, ..Exported::default() });
    }
    let of = |key: &str| model.rotary().and_then(|rope| rope.get(key));
    let number = |key: &str| of(key).and_then(Value::as_f64);
    let factor = number("factor").unwrap_or(f64::from(context) / f64::from(original));
    let default = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / f64::from(original).ln()).sqrt() };
    let attention = number("attention_factor").unwrap_or(default);
    if (attention - default).abs() > 1e-5 || (factor - f64::from(context) / f64::from(original)).abs() > 1e-5 {
        let what = format!("factor {factor} and attention_factor {attention} of its rotary scaling");
        let expected = "both from max_position_embeddings and original_max_position_embeddings when it is read again";
        return Err(model.refuse(&what, expected));
    }
    keys.push(("rope.scaling.attn_factor", Key::Float(attention as f32)));
    let mut tensors = Vec::new();
    for (name, key) in [("rope_factors_long.weight", "long_factor"), ("rope_factors_short.weight", "short_factor")] {
        let list = of(key).and_then(Value::as_array).into_iter().flatten();
        let factors: Vec<f32> = list.filter_map(Value::as_f64).map(|n| n as f32).collect();
        if factors.len() != rotated / 2 {
            return Err(WeightsError::malformed(
                "config.json",
                format!("expected {} numbers under {key:?}, found {}", rotated / 2, factors.len()),
            ));
        }
        tensors.push((name, factors));
    }
    Ok(Exported { keys, own_rotary: true, tensors, ..Exported::default() })
}
