//! The text part of a multimodal checkpoint: Gemma 3 from 4B on is published only in this form.
//!
//! Its `text_config` becomes the configuration and the prefix of its tensor names is removed, so that no other module
//! knows of it; the vision tower is never read. Rejected: a second architecture that loads under other names, because
//! it would repeat `gemma3_text`.

use crate::checkpoint::TensorEntry;
use crate::error::WeightsError;
use serde_json::{Map, Value, json};

/// Prefixes of the language model's names: in transformers 4 (first and later versions) and 5.
const PREFIXES: &[(&str, &str)] = &[
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
];

/// Prefixes of the other parts.
const OTHERS: &[&str] =
    &["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];

/// The part of a multimodal model to which a tensor or module belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPart {
    /// The language model, with the name that it has in a checkpoint of text alone.
    Text(String),
    /// The vision tower or its projector.
    Vision,
    /// The name has no prefix of a multimodal model.
    Unknown,
}

/// The part to which a name belongs.
pub fn model_part(name: &str) -> ModelPart {
    if OTHERS.iter().any(|prefix| name.starts_with(prefix)) {
        return ModelPart::Vision;
    }
    let renamed = PREFIXES.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
    renamed.map_or(ModelPart::Unknown, ModelPart::Text)
}

/// The defaults of `Gemma3TextConfig`; published files leave out values that equal them.
fn defaults() -> Value {
    json!({
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    })
}

/// Configuration and tensors of the text part; other checkpoints are returned unchanged.
///
/// Errors: a tensor belongs neither to the language model nor to the vision part.
pub(crate) fn text_part(config: Value, tensors: Vec<TensorEntry>) -> Result<(Value, Vec<TensorEntry>), WeightsError> {
    let Some(text) = config.get("text_config").and_then(Value::as_object) else { return Ok((config, tensors)) };
    if config.get("model_type").and_then(Value::as_str) != Some("gemma3") {
        return Ok((config, tensors));
    }
    let mut merged: Map<String, Value> = defaults().as_object().cloned().unwrap_or_default();
    // Token ids and the quantization are outside `text_config`.
    let outside = config.as_object().into_iter().flatten().filter(|(key, _)| {
        key.ends_with("_token_id") || *key == "quantization_config" || *key == "tie_word_embeddings"
    });
    merged.extend(outside.map(|(key, value)| (key.clone(), value.clone())));
    merged.extend(text.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())));
    merged.insert("model_type".to_owned(), json!("gemma3_text"));
    let mut kept = Vec::with_capacity(tensors.len());
    for mut tensor in tensors {
        let name = match model_part(&tensor.name) {
            ModelPart::Vision => continue,
            ModelPart::Text(name) => name,
            ModelPart::Unknown => {
                return Err(WeightsError::malformed(
                    &tensor.file,
                    format!(
                        "tensor {:?}: expected one of the language model ({}) or of the vision tower",
                        tensor.name, PREFIXES[0].0
                    ),
                ));
            }
        };
        tensor.name = name;
        kept.push(tensor);
    }
    Ok((Value::Object(merged), kept))
}
