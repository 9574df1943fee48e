//! The text part of a multimodal checkpoint: Gemma 3 from 4B on, Gemma 4 and Qwen 3.5 are published only in this form.
//!
//! Its `text_config` becomes the configuration and the prefix of its tensor names is removed, so that no other module
//! knows of it; the other parts are never read. Rejected: second architectures that load under other names, because
//! they would repeat those of the text part.

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

/// A kind of multimodal model.
struct Kind {
    model_type: &'static str,
    /// The `model_type` of its text part.
    text: &'static str,
    /// The defaults of that part's configuration.
    defaults: fn() -> Value,
    /// Prefixes of the other parts: images, sound, and Qwen's layer that predicts further tokens ahead.
    others: &'static [&'static str],
}

const KINDS: &[Kind] = &[
    Kind {
        model_type: "gemma3",
        text: "gemma3_text",
        defaults: gemma3,
        others: &["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."],
    },
    Kind {
        model_type: "gemma4",
        text: "gemma4_text",
        defaults: gemma4,
        others: &["model.vision_tower.", "model.embed_vision.", "model.audio_tower.", "model.embed_audio."],
    },
    Kind { model_type: "qwen3_5", text: "qwen3_5_text", defaults: qwen3_5, others: &["model.visual.", "mtp."] },
];

/// The part of a multimodal model to which a tensor or module belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPart {
    /// The language model, with the name that it has in a checkpoint of text alone.
    Text(String),
    /// A tower for images or sound, its projector, or a layer that the text does not need.
    Other,
    /// The name has no prefix of a multimodal model.
    Unknown,
}

impl Kind {
    /// Whether a tensor belongs to another part than the text.
    fn has_other(&self, name: &str) -> bool {
        self.others.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// The part to which a name belongs.
pub fn model_part(name: &str) -> ModelPart {
    if KINDS.iter().any(|kind| kind.has_other(name)) {
        return ModelPart::Other;
    }
    let renamed = PREFIXES.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
    renamed.map_or(ModelPart::Unknown, ModelPart::Text)
}

/// The defaults of `Gemma3TextConfig`; published files leave out values that equal them.
fn gemma3() -> Value {
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

/// Those of `Gemma4TextConfig` that the architecture itself does not have.
fn gemma4() -> Value {
    json!({
        "vocab_size": 262_144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "tie_word_embeddings": true,
    })
}

/// Those of `Qwen3_5TextConfig` that the architecture itself does not have.
fn qwen3_5() -> Value {
    json!({
        "vocab_size": 248_320,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
    })
}

/// Configuration and tensors of the text part; other checkpoints are returned unchanged.
///
/// Errors: a tensor belongs neither to the language model nor to another known part.
pub(crate) fn text_part(config: Value, tensors: Vec<TensorEntry>) -> Result<(Value, Vec<TensorEntry>), WeightsError> {
    let Some(text) = config.get("text_config").and_then(Value::as_object) else { return Ok((config, tensors)) };
    let model_type = config.get("model_type").and_then(Value::as_str);
    let Some(kind) = KINDS.iter().find(|kind| model_type == Some(kind.model_type)) else {
        return Ok((config, tensors));
    };
    let mut merged: Map<String, Value> = (kind.defaults)().as_object().cloned().unwrap_or_default();
    // Token ids and the quantization are outside `text_config`.
    let outside = config.as_object().into_iter().flatten().filter(|(key, _)| {
        key.ends_with("_token_id") || *key == "quantization_config" || *key == "tie_word_embeddings"
    });
    merged.extend(outside.map(|(key, value)| (key.clone(), value.clone())));
    merged.extend(text.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())));
    merged.insert("model_type".to_owned(), json!(kind.text));
    let mut kept = Vec::with_capacity(tensors.len());
    for mut tensor in tensors {
        let name = match model_part(&tensor.name) {
            ModelPart::Other if kind.has_other(&tensor.name) => continue,
            ModelPart::Text(name) => name,
            ModelPart::Other | ModelPart::Unknown => {
                return Err(WeightsError::malformed(
                    &tensor.file,
                    format!(
                        "tensor {:?}: expected one of the language model ({}) or of a tower for images or sound",
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
