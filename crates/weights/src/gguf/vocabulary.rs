//! Converts a `tokenizer.json` to GGUF's metadata.

use super::pretokenizers::{EQUAL, NFC_KEY, PreTokenizer, TABLE};
use super::writer::Entry;
use crate::error::WeightsError;
use serde_json::Value;
use std::collections::HashMap;

/// Token types, numbered as in SentencePiece.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
/// Special tokens of Gemma 4 that llama.cpp's converter marks as plain ones, so that programs see where thoughts and
/// calls of tools begin and end.
const SHOWN_BY_GEMMA4: [&str; 7] =
    ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|\"|>"];

fn unsupported(what: &str) -> WeightsError {
    WeightsError::Unsupported {
        what: format!("tokenizer.json: {what}, as GGUF"),
        remedy: "GGUF has only names of pre-tokenizers: supported are byte-level BPE with the rules of one of them, \
                 and BPE with byte fallback; keep this model as safetensors"
            .to_owned(),
    }
}

/// The keys of the tokenizer, the special ids and the chat template.
///
/// Errors: a kind of tokenizer that GGUF cannot express.
pub fn metadata(
    tokenizer: &Value,
    tokenizer_config: &Value,
    config: &Value,
    template: Option<&str>,
) -> Result<Vec<(String, Entry)>, WeightsError> {
    let model = tokenizer.get("model").ok_or_else(|| unsupported("a file without a model"))?;
    let vocab =
        model.get("vocab").and_then(Value::as_object).ok_or_else(|| unsupported("a model without a vocabulary"))?;
    let size = config.get("vocab_size").and_then(Value::as_u64).unwrap_or(0) as usize;
    let fallback = model.get("byte_fallback").and_then(Value::as_bool).unwrap_or(false);
    let largest = vocab.values().filter_map(Value::as_u64).max().unwrap_or(0) as usize;
    if size <= largest || size > 100 * (largest + 1000) {
        return Err(unsupported("a vocabulary of another size than the model's"));
    }
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![5; size];
    for (token, id) in vocab {
        let id = id.as_u64().unwrap_or(0) as usize;
        let byte = fallback && token.len() == 6 && token.starts_with("<0x");
        (tokens[id], kinds[id]) = (token.clone(), if byte { 6 } else { 1 });
    }
    for added in tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let (id, text) = (added.get("id").and_then(Value::as_u64), added.get("content").and_then(Value::as_str));
        if let (Some(id), Some(text)) = (id.filter(|id| (*id as usize) < size), text) {
            let special = added.get("special").and_then(Value::as_bool).unwrap_or(false);
            let unknown = model.get("unk_token").and_then(Value::as_str) == Some(text);
            (tokens[id as usize], kinds[id as usize]) = (
                text.to_owned(),
                if unknown {
                    2
                } else if special {
                    3
                } else {
                    4
                },
            );
        }
    }
    let merges = merges(model)?;
    let mut out: Vec<(String, Entry)> = Vec::new();
    let mut add = |key: &str, entry: Entry| out.push((format!("tokenizer.{key}"), entry));
    let (mut add_bos, mut add_eos) = (false, false);
    let around = tokenizer.to_string();
    let named = |name: &str| {
        tokenizer_config.get(name).and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()))
    };
    let id_of = |text: &str| tokens.iter().position(|token| token == text);
    // The post-processor decides whether texts get a bos or an eos token.
    for (name, flag) in [("bos_token", &mut add_bos), ("eos_token", &mut add_eos)] {
        *flag = named(name).is_some_and(|text| {
            tokenizer.pointer("/post_processor").is_some()
                && around.contains(&format!("{{\"SpecialToken\":{{\"id\":{}", Value::from(text)))
        });
    }
    // Gemma 4's has merges instead of scores.
    let is_gemma4 = fallback && config.get("model_type").and_then(Value::as_str) == Some("gemma4_text");
    if is_gemma4 {
        for (token, kind) in tokens.iter().zip(&mut kinds) {
            if *kind == CONTROL && SHOWN_BY_GEMMA4.contains(&token.as_str()) {
                *kind = USER_DEFINED;
            }
        }
        add("ggml.model", Entry::Text("gemma4".into()));
        add("ggml.merges", Entry::Texts(merges.iter().map(|[left, right]| format!("{left} {right}")).collect()));
        add("ggml.add_space_prefix", Entry::Flag(false));
    } else if fallback {
        let prefix = tokenizer.get("normalizer").is_some_and(|value| value.to_string().contains("Prepend"))
            || tokenizer.get("pre_tokenizer").is_some_and(|value| value.to_string().contains("Metaspace"));
        let mut rank: HashMap<String, usize> = HashMap::new();
        for (index, [left, right]) in merges.iter().enumerate() {
            rank.entry(format!("{left}{right}")).or_insert(index);
        }
        let score = |(id, token): (usize, &String)| {
            if kinds[id] == 1 { -(rank.get(token).copied().unwrap_or(merges.len() + id) as f32) } else { 0.0 }
        };
        add("ggml.model", Entry::Text("llama".into()));
        add("ggml.scores", Entry::Floats(tokens.iter().enumerate().map(score).collect()));
        add("ggml.add_space_prefix", Entry::Flag(prefix));
    } else {
        add("ggml.model", Entry::Text("gpt2".into()));
        let rules = rules(tokenizer)?;
        add("ggml.pre", Entry::Text(rules.names[0].into()));
        if rules.nfc != normalizes(tokenizer) {
            add(NFC_KEY.trim_start_matches("tokenizer."), Entry::Flag(normalizes(tokenizer)));
        }
        add("ggml.merges", Entry::Texts(merges.iter().map(|[left, right]| format!("{left} {right}")).collect()));
    }
    for (name, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        if let Some(id) = named(name).and_then(id_of) {
            add(&format!("ggml.{key}_token_id"), Entry::Number(id as u32));
        }
    }
    add("ggml.add_bos_token", Entry::Flag(add_bos));
    add("ggml.add_eos_token", Entry::Flag(add_eos));
    if let Some(template) = template {
        add("chat_template", Entry::Text(template.to_owned()));
    }
    add("ggml.token_type", Entry::Numbers(kinds));
    add("ggml.tokens", Entry::Texts(tokens));
    Ok(out)
}

fn merges(model: &Value) -> Result<Vec<[String; 2]>, WeightsError> {
    let list = model.get("merges").and_then(Value::as_array).ok_or_else(|| unsupported("a model other than BPE"))?;
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| [left.to_owned(), right.to_owned()]),
        Value::Array(both) => Some([both.first()?.as_str()?.to_owned(), both.get(1)?.as_str()?.to_owned()]),
        _ => None,
    };
    list.iter().map(|merge| pair(merge).ok_or_else(|| unsupported("a merge that is not a pair of tokens"))).collect()
}

/// The rules of the table that the file states; the first of their names is llama.cpp's name.
fn rules(tokenizer: &Value) -> Result<&'static PreTokenizer, WeightsError> {
    let mut stated = tokenizer.get("pre_tokenizer").cloned().unwrap_or(Value::Null);
    for step in stated.get_mut("pretokenizers").and_then(Value::as_array_mut).into_iter().flatten() {
        let regex = step.pointer_mut("/pattern/Regex");
        if let Some(regex) = regex
            && let Some((_, known)) = EQUAL.iter().find(|(equal, _)| regex.as_str() == Some(equal))
        {
            *regex = Value::from(*known);
        }
    }
    let ignores = tokenizer.pointer("/model/ignore_merges").and_then(Value::as_bool).unwrap_or(false);
    let same = TABLE.iter().filter(|rules| same_rules(&rules.json(), &stated));
    // Names with the same expression differ in how they normalize and merge.
    let closest = same.max_by_key(|rules| (rules.ignore_merges == ignores, rules.nfc == normalizes(tokenizer)));
    closest.ok_or_else(|| unsupported("a pre-tokenizer that GGUF has no name for"))
}

/// Whether texts are normalized to NFC.
fn normalizes(tokenizer: &Value) -> bool {
    tokenizer.pointer("/normalizer/type").and_then(Value::as_str) == Some("NFC")
}

/// Whether two pre-tokenizers cut alike: fields that only move offsets may differ.
fn same_rules(ours: &Value, stated: &Value) -> bool {
    let steps = |value: &Value| -> Vec<Value> {
        let list = value.get("pretokenizers").and_then(Value::as_array).cloned();
        list.unwrap_or_else(|| vec![value.clone()])
    };
    let without_offsets = |mut step: Value| {
        if let Some(fields) = step.as_object_mut() {
            fields.remove("trim_offsets");
        }
        step
    };
    let (ours, stated) = (steps(ours), steps(stated));
    ours.into_iter().map(without_offsets).eq(stated.into_iter().map(without_offsets))
}
