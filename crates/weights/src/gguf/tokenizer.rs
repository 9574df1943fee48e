//! Converts GGUF's tokenizer metadata to the files of a Hugging Face checkpoint: a SentencePiece `tokenizer.model`, or
//! the `tokenizer.json` of a byte-level BPE, and `tokenizer_config.json` with the chat template.
//!
//! The same code then reads these and published files, so that there is one definition of every id.
//! [`pretokenizers`] knows the rules by which texts are cut, of which GGUF has only the name.

use super::arch::Arch;
use super::config::end_ids;
use super::header::Header;
use super::pretokenizers::{self, PreTokenizer};
use crate::error::WeightsError;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Token types, numbered as in SentencePiece.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// The tokenizer's files, by name.
pub(super) fn files(
    file: &str,
    header: &Header,
    arch: &Arch,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, Vec<u8>>, WeightsError> {
    let mut files = BTreeMap::new();
    let Some(tokens) = header.texts("tokenizer.ggml.tokens") else { return Ok(files) };
    let kinds = header.integers("tokenizer.ggml.token_type");
    if let Some(kinds) = kinds.filter(|kinds| kinds.len() != tokens.len()) {
        return Err(WeightsError::malformed(file, format!("{} tokens have {} token types", tokens.len(), kinds.len())));
    }
    let kind = |id: usize| kinds.map_or(NORMAL, |kinds| kinds[id]);
    let add_bos = match header.text("tokenizer.ggml.model") {
        Some("llama") => {
            files.insert("tokenizer.model".to_owned(), sentencepiece(file, header, tokens, &kind, notes)?);
            header.flag("tokenizer.ggml.add_bos_token").unwrap_or(true)
        }
        Some("gemma4") => {
            let add_bos = header.flag("tokenizer.ggml.add_bos_token").unwrap_or(true);
            files.insert("tokenizer.json".to_owned(), bpe(file, header, tokens, &kind, Form::Spaces, add_bos, notes)?);
            add_bos
        }
        Some("gpt2") => {
            let name = pretokenizers::name_in(file, header, arch, tokens, notes);
            let rules = pretokenizers::by_name(name).ok_or_else(|| WeightsError::Unsupported {
                what: format!("{file}: the pre-tokenizer {name:?}"),
                remedy:
                    "take the safetensors checkpoint of this model, whose tokenizer.json describes the pre-tokenizer"
                        .to_owned(),
            })?;
            let add_bos = header.flag("tokenizer.ggml.add_bos_token").unwrap_or(rules.bos);
            files.insert(
                "tokenizer.json".to_owned(),
                bpe(file, header, tokens, &kind, Form::Bytes(rules), add_bos, notes)?,
            );
            add_bos
        }
        other => {
            return Err(WeightsError::Unsupported {
                what: format!("{file}: a tokenizer of kind {:?}", other.unwrap_or("none")),
                remedy: "kinds \"llama\" (SentencePiece), \"gpt2\" (byte-level BPE) and \"gemma4\" are read; take the safetensors checkpoint of this model".to_owned(),
            });
        }
    };
    files.insert(
        "tokenizer_config.json".to_owned(),
        tokenizer_config(header, tokens, arch.model_types[0], add_bos).to_string().into_bytes(),
    );
    let ends = end_ids(header);
    files.insert("generation_config.json".to_owned(), json!({"eos_token_id": ends}).to_string().into_bytes());
    Ok(files)
}

fn tokenizer_config(header: &Header, tokens: &[String], model_type: &str, add_bos: bool) -> Value {
    let text = |key: &str| {
        header
            .integer(&format!("tokenizer.ggml.{key}_token_id"))
            .and_then(|id| tokens.get(usize::try_from(id).ok()?))
            .cloned()
    };
    let mut config = Map::new();
    for (name, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        config.insert(name.to_owned(), json!(text(key)));
    }
    // Qwen has no bos token, but the converter writes one.
    if model_type.starts_with("qwen") && !add_bos {
        config.insert("bos_token".to_owned(), Value::Null);
    }
    config.insert("add_bos_token".to_owned(), json!(add_bos));
    config.insert("add_eos_token".to_owned(), json!(header.flag("tokenizer.ggml.add_eos_token").unwrap_or(false)));
    config.insert("legacy".to_owned(), json!(true));
    if let Some(template) = header.text("tokenizer.chat_template") {
        let named = header.texts("tokenizer.chat_templates").unwrap_or_default();
        let source = |name: &String| {
            Some(json!({"name": name, "template": header.text(&format!("tokenizer.chat_template.{name}"))?}))
        };
        let mut list: Vec<Value> = named.iter().filter_map(source).collect();
        let value = if list.is_empty() {
            json!(template)
        } else {
            list.insert(0, json!({"name": "default", "template": template}));
            Value::Array(list)
        };
        config.insert("chat_template".to_owned(), value);
    }
    Value::Object(config)
}

/// A SentencePiece model of type BPE: pieces with their scores, and the treatment of spaces.
fn sentencepiece(
    file: &str,
    header: &Header,
    tokens: &[String],
    kind: &dyn Fn(usize) -> i64,
    notes: &mut Vec<String>,
) -> Result<Vec<u8>, WeightsError> {
    let scores = header.floats("tokenizer.ggml.scores").unwrap_or_default();
    if scores.len() != tokens.len() {
        return Err(WeightsError::malformed(file, format!("{} tokens have {} scores", tokens.len(), scores.len())));
    }
    let mut out = Vec::new();
    let last = last_ids(file, tokens, kind, notes);
    for (id, token) in tokens.iter().enumerate() {
        let mut piece = Vec::new();
        // Pieces are distinct and have a text: a token that no text has is an unused piece with a name of its own.
        let (text, kind) = match last.get(token.as_str()) {
            Some(last) if *last != id => (format!("[unused {id}]"), UNUSED),
            None if token.is_empty() => (format!("[unused {id}]"), UNUSED),
            _ => (token.clone(), kind(id)),
        };
        push_bytes(&mut piece, 1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend_from_slice(&(scores[id] as f32).to_le_bytes());
        push_number(&mut piece, 3, u64::try_from(kind).unwrap_or(0));
        push_bytes(&mut out, 1, &piece);
    }
    let mut trainer = Vec::new();
    push_number(&mut trainer, 3, 2);
    push_number(&mut trainer, 35, u64::from((0..tokens.len()).any(|id| kind(id) == 6)));
    push_bytes(&mut out, 2, &trainer);
    let mut normalizer = Vec::new();
    push_number(&mut normalizer, 3, u64::from(header.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true)));
    push_number(&mut normalizer, 4, u64::from(header.flag("tokenizer.ggml.remove_extra_whitespaces").unwrap_or(false)));
    push_bytes(&mut out, 3, &normalizer);
    Ok(out)
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn push_number(out: &mut Vec<u8>, field: u64, value: u64) {
    push_varint(out, field << 3);
    push_varint(out, value);
}

fn push_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    push_varint(out, field << 3 | 2);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// How a BPE tokenizer writes the bytes of a text.
#[derive(Clone, Copy)]
enum Form<'a> {
    /// Each byte as a character; the rules cut the text.
    Bytes(&'a PreTokenizer),
    /// Spaces as "▁", and bytes that no token has as "<0x…>" (Gemma 4).
    Spaces,
}

impl Form<'_> {
    /// Normalizer, pre-tokenizer and decoder.
    fn json(self) -> [Value; 3] {
        match self {
            Form::Bytes(rules) => [
                if rules.nfc { json!({"type": "NFC"}) } else { Value::Null },
                rules.json(),
                json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
            ],
            Form::Spaces => {
                let replace =
                    |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
                let behavior = "MergedWithPrevious";
                let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": behavior, "invert": false});
                let decoders = json!([replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]);
                [replace(" ", "▁"), split, json!({"type": "Sequence", "decoders": decoders})]
            }
        }
    }
}

fn bpe(
    file: &str,
    header: &Header,
    tokens: &[String],
    kind: &dyn Fn(usize) -> i64,
    form: Form<'_>,
    add_bos: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<u8>, WeightsError> {
    let bad = |problem: String| WeightsError::malformed(file, problem);
    let merges = header
        .texts("tokenizer.ggml.merges")
        .ok_or_else(|| bad("a BPE tokenizer without tokenizer.ggml.merges".to_owned()))?;
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let pair =
            merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| (&merge[..at], &merge[at + 1..]));
        let (left, right) =
            pair.ok_or_else(|| bad(format!("the merge {merge:?} is not two tokens with a space between")))?;
        pairs.push([left, right]);
    }
    let mut vocab = Map::new();
    let mut added = Vec::new();
    let last = last_ids(file, tokens, kind, notes);
    for (id, token) in tokens.iter().enumerate() {
        if last.get(token.as_str()) != Some(&id) {
            continue;
        }
        vocab.insert(token.clone(), json!(id));
        if matches!(kind(id), UNKNOWN | CONTROL | USER_DEFINED) {
            let special = kind(id) != USER_DEFINED;
            added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special}));
        }
    }
    let bos = header
        .integer("tokenizer.ggml.bos_token_id")
        .filter(|_| add_bos)
        .and_then(|id| Some((id, tokens.get(usize::try_from(id).ok()?)?)));
    let [normalizer, pre_tokenizer, decoder] = form.json();
    let spaces = matches!(form, Form::Spaces);
    let ignore_merges = matches!(form, Form::Bytes(rules) if rules.ignore_merges);
    let normalizer = match (form, header.flag(pretokenizers::NFC_KEY)) {
        (Form::Bytes(_), Some(true)) => json!({"type": "NFC"}),
        (Form::Bytes(_), Some(false)) => Value::Null,
        _ => normalizer,
    };
    let unknown = header.integer("tokenizer.ggml.unknown_token_id").filter(|_| spaces);
    let unknown = unknown.and_then(|id| tokens.get(usize::try_from(id).ok()?));
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": bos.map(|(id, text)| post_processor(id, text)),
        "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": spaces, "byte_fallback": spaces, "ignore_merges": ignore_merges, "vocab": vocab, "merges": pairs,
        },
    });
    Ok(json.to_string().into_bytes())
}

/// The id of each text. Published files have a few tokens without text, and a few texts twice; as in llama.cpp, a text
/// then gets the last of its ids, and `notes` says which ids no text has.
fn last_ids<'a>(
    file: &str,
    tokens: &'a [String],
    kind: &dyn Fn(usize) -> i64,
    notes: &mut Vec<String>,
) -> BTreeMap<&'a str, usize> {
    let (mut last, mut empty, mut repeated) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| kind(*id) != UNUSED) {
        if token.is_empty() {
            empty.push(id);
        } else if let Some(earlier) = last.insert(token.as_str(), id) {
            repeated.push(earlier);
        }
    }
    for (what, ids) in [("without text", empty), ("whose text a later token has, too", repeated)] {
        if !ids.is_empty() {
            let shown: Vec<String> = ids.iter().take(5).map(usize::to_string).collect();
            let more = if ids.len() > shown.len() { ", …" } else { "" };
            notes.push(format!(
                "{file}: {} tokens {what} (ids {}{more}): no text is converted to them",
                ids.len(),
                shown.join(", ")
            ));
        }
    }
    last
}

/// A post-processor that adds the bos token before each text.
fn post_processor(id: u64, text: &str) -> Value {
    let around = |sequence: &str, type_id: usize| {
        [
            json!({"SpecialToken": {"id": text, "type_id": type_id}}),
            json!({"Sequence": {"id": sequence, "type_id": type_id}}),
        ]
    };
    let special = json!({"id": text, "ids": [id], "tokens": [text]});
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": {text: special}})
}
