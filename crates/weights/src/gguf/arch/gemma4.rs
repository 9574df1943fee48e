//! Gemma 4 (text). Keys that differ between layers are lists; the divisors of the rotary frequencies, which are huge
//! for the pairs that stand still, are those of the layers that attend to all positions.

use super::super::config::{Reader, short};
use super::super::names::Names;
use super::gemma::activation;
use super::{Arch, Exported, Key, Model, PLAIN};
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
    Arch { gguf: "gemma4", model_types: &["gemma4_text"], globals: GLOBALS, layers: LAYERS, config, export, ..PLAIN };

/// The divisor of frequencies that stand still.
const STILL: f32 = 1e30;
/// Every sixth layer has full attention where the configuration does not say.
const PATTERN: usize = 6;

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

/// Sizes of heads and of MLPs are those of the tensors, which the configuration tells in several ways.
fn export(model: &Model<'_>) -> Result<Exported, WeightsError> {
    model.without(&["attention_bias", "enable_moe_block"])?;
    let layers = model.layers()?;
    let local = local_layers(model, layers);
    // llama.cpp takes the keys and values that layers share from the last two layers that have some.
    let shared = model.size("num_kv_shared_layers").unwrap_or(0) as usize;
    if shared > 0 {
        let own = layers.saturating_sub(shared);
        if own < 2 || local[own - 1] || !local[own - 2] {
            return Err(model.refuse(
                &format!("num_kv_shared_layers {shared} after other layers than one with a window and one without"),
                "shared keys and values of the last two layers before, the first of which has a window",
            ));
        }
    }
    let shape = |layer: usize, part: &str| model.shape(&format!("model.layers.{layer}.{part}.weight"));
    let head_dim = |wanted: bool| {
        let found = (0..layers).zip(&local).filter(|(_, local)| **local == wanted);
        found.filter_map(|(layer, _)| shape(layer, "self_attn.q_norm")?.first().copied()).next()
    };
    let (near, far) = (head_dim(true), head_dim(false));
    let [near, far] = [near.or(far), far.or(near)].map(|size| size.unwrap_or(model.head_dim).max(1));
    // Layers without keys read those of an earlier layer of their kind.
    let own = |layer: usize| {
        let rows = shape(layer, "self_attn.k_proj")?.first()?;
        Some((rows / if local[layer] { near } else { far }) as i32)
    };
    let heads: Option<Vec<i32>> = (0..layers)
        .map(|layer| own(layer).or_else(|| (0..layer).rev().filter(|from| local[*from] == local[layer]).find_map(own)))
        .collect();
    let heads = heads.ok_or_else(|| {
        WeightsError::malformed("config.json", "layer_types: the first layer of a kind has no projection of keys")
    })?;
    let widths: Vec<i32> = (0..layers)
        .map(|layer| Some(*shape(layer, "mlp.gate_proj")?.first()? as i32))
        .collect::<Option<_>>()
        .ok_or_else(|| WeightsError::malformed("model.safetensors", "a layer without mlp.gate_proj.weight"))?;
    let rope = |kind: &str, key: &str| {
        let parameters = model.config.get("rope_parameters").and_then(|all| all.get(kind));
        parameters.and_then(|parameters| parameters.get(key)).cloned().unwrap_or(Value::Null)
    };
    let theta = |kind: &str, default: f64| Key::Float(rope(kind, "rope_theta").as_f64().unwrap_or(default) as f32);
    if !matches!(rope("sliding_attention", "rope_type").as_str(), None | Some("default")) {
        return Err(model.refuse("rotary scaling in the layers with a window", "these layers without any"));
    }
    let whole = |size: usize| Key::Whole(size as u32);
    let mut keys = vec![
        ("attention.key_length", whole(far)),
        ("attention.value_length", whole(far)),
        ("attention.key_length_swa", whole(near)),
        ("attention.value_length_swa", whole(near)),
        ("attention.head_count_kv", Key::Wholes(heads)),
        ("attention.sliding_window", Key::Whole(model.size("sliding_window").unwrap_or(512))),
        ("attention.shared_kv_layers", whole(shared)),
        ("embedding_length_per_layer_input", whole(per_layer_size(model))),
        ("feed_forward_length", Key::Wholes(widths)),
        ("rope.dimension_count", whole(far)),
        ("rope.dimension_count_swa", whole(near)),
        ("rope.freq_base", theta("full_attention", 1e6)),
        ("rope.freq_base_swa", theta("sliding_attention", 1e4)),
    ];
    keys.extend(model.number("final_logit_softcapping").map(|cap| ("final_logit_softcapping", Key::Float(cap))));
    keys.push(("attention.sliding_window_pattern", Key::Flags(local)));
    let tensors = vec![("rope_freqs.weight", divisors(model, &rope, far)?)];
    let tied = model.config.get("tie_word_embeddings") != Some(&Value::Bool(false));
    Ok(Exported { keys, own_rotary: true, tensors, tied, ..Exported::default() })
}

/// Whether each layer has a window. The last one has none, whatever the list says.
fn local_layers(model: &Model<'_>, layers: usize) -> Vec<bool> {
    let types = model.config.get("layer_types").and_then(Value::as_array);
    let told = ["sliding_window_pattern", "_sliding_window_pattern"].iter().find_map(|key| model.size(key));
    let pattern = told.filter(|pattern| *pattern > 0).map_or(PATTERN, |pattern| pattern as usize);
    let local = |layer: usize| match types.and_then(|types| types.get(layer)).and_then(Value::as_str) {
        Some(kind) => kind == "sliding_attention",
        None => !(layer + 1).is_multiple_of(pattern),
    };
    (0..layers).map(|layer| layer + 1 < layers && local(layer)).collect()
}

fn per_layer_size(model: &Model<'_>) -> usize {
    model.shape("model.per_layer_projection_norm.weight").and_then(|shape| shape.first().copied()).unwrap_or(0)
}

/// The divisors of the frequencies of a whole head: the first pairs turn, the others stand still.
fn divisors(model: &Model<'_>, rope: &dyn Fn(&str, &str) -> Value, head: usize) -> Result<Vec<f32>, WeightsError> {
    let of = |key: &str| rope("full_attention", key);
    let is_told = model.config.get("rope_parameters").is_some_and(|all| all.get("full_attention").is_some());
    let (kind, part) = if is_told { ("default", 1.0) } else { ("proportional", 0.25) };
    let part = of("partial_rotary_factor").as_f64().unwrap_or(part);
    let stated = of("rope_type");
    match stated.as_str().unwrap_or(kind) {
        "frequency_factors" => {
            let list: Vec<f32> =
                of("factors").as_array().into_iter().flatten().filter_map(Value::as_f64).map(|n| n as f32).collect();
            match list.len() == head / 2 {
                true => Ok(list),
                false => {
                    Err(model.refuse("divisors of another count than pairs", "one divisor for each pair of a head"))
                }
            }
        }
        "proportional" => {
            let factor = of("factor").as_f64().unwrap_or(1.0) as f32;
            let turned = (head as f64 * part) as usize / 2;
            Ok((0..head / 2).map(|pair| if pair < turned { factor } else { STILL }).collect())
        }
        "default" if part == 1.0 => Ok(vec![1.0; head / 2]),
        kind => Err(model.refuse(&format!("the rotary scaling {kind:?}"), "proportional frequencies")),
    }
}
