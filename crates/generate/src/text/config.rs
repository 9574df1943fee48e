//! Generation settings from a checkpoint's JSON files: stop tokens, and the authors' recommended sampling.
//!
//! The stop set is the union of all files, because each is incomplete: some list only the end of the document, others
//! only the end of the turn, some neither (SILMA's generation_config has eos 1, but its turns end with 107). Rejected
//! for that reason: reading only one file.

use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Tokens that end a turn in common templates.
const END_OF_TURN: [&str; 11] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|end|>",
    "<|END_OF_TURN_TOKEN|>",
    "<turn|>",
    "<|endofturn|>",
    "<|return|>",
    "<|call|>",
];

/// The sampling defaults of generation_config.json; `None` where the file says nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationDefaults {
    /// Sampling (true) or greedy decoding (false, transformers' default).
    pub do_sample: Option<bool>,
    /// Divides the logits; above 0.
    pub temperature: Option<f32>,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keep the most likely tokens whose probabilities reach this sum, in 0..=1.
    pub top_p: Option<f32>,
    /// Keep tokens at least this fraction as likely as the most likely one, in 0..=1.
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens already seen; 1 changes nothing.
    pub repetition_penalty: Option<f32>,
    /// Most new tokens.
    pub max_new_tokens: Option<u32>,
}

impl GenerationDefaults {
    /// Reads generation_config.json. Values of a wrong type or outside their range are ignored, because the defaults
    /// are only recommendations.
    pub fn from_json(generation_config: &Value) -> Self {
        let number = |name: &str| {
            generation_config.get(name).and_then(Value::as_f64).filter(|v| v.is_finite()).map(|v| v as f32)
        };
        let count =
            |name: &str| generation_config.get(name).and_then(Value::as_u64).and_then(|v| u32::try_from(v).ok());
        let fraction = |name: &str| number(name).filter(|v| (0.0..=1.0).contains(v));
        Self {
            do_sample: generation_config.get("do_sample").and_then(Value::as_bool),
            temperature: number("temperature").filter(|v| *v > 0.0),
            top_k: count("top_k"),
            top_p: fraction("top_p"),
            min_p: fraction("min_p"),
            repetition_penalty: number("repetition_penalty").filter(|v| *v > 0.0),
            max_new_tokens: count("max_new_tokens"),
        }
    }
}

/// The ids that end generation: eos of config.json (and its `text_config`), of generation_config.json and of the
/// tokenizer, and the end-of-turn tokens that occur in both the chat template and the vocabulary. Ascending, without
/// duplicates.
pub fn stop_ids(
    config: Option<&Value>,
    generation_config: Option<&Value>,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Vec<u32> {
    let mut ids: Vec<u32> = tokenizer.eos().to_vec();
    for file in [config, generation_config].into_iter().flatten() {
        ids.extend(id_list(file, "eos_token_id"));
    }
    if let Some(source) = template.map(ChatTemplate::source) {
        let stands = |token: &str| source.contains(token);
        let ends =
            END_OF_TURN.iter().filter(|token| stands(token) || (**token == "<|eom_id|>" && stands("<|eot_id|>")));
        ids.extend(ends.filter_map(|token| tokenizer.id(token)));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The ids under `name` (a number, a list of numbers or null), also inside `text_config`.
pub(crate) fn id_list(config: &Value, name: &str) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    let of = |v: Option<&Value>| match v {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect::<Vec<_>>(),
        Some(v) => id(v).into_iter().collect(),
        None => vec![],
    };
    let mut ids = of(config.get(name));
    ids.extend(of(config.get("text_config").and_then(|c| c.get(name))));
    ids
}

/// A special token's text, written as a string or as an object with `content`.
pub(crate) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
