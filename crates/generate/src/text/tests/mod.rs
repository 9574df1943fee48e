//! The text tests: every fixture of transformers and tokenizers, then hostile and unusual input.

mod chat;
mod fixtures;
mod hostile;
mod sentencepiece;
mod stopping;
mod tokenizing;

use super::{ChatTemplate, Tokenizer, TokenizerFiles};
use serde_json::Value;
use std::path::PathBuf;

/// Fixture checkpoints with text cases, sorted.
pub(super) fn models() -> Vec<String> {
    let folders = std::fs::read_dir(path("expected", "", "")).expect("fixtures");
    let names = folders.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    let mut names: Vec<String> = names.filter(|name| path("expected", name, "tokenizer_cases.json").exists()).collect();
    names.sort();
    assert!(names.len() > 8, "only {names:?}");
    names
}

pub(super) fn path(kind: &str, name: &str, file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../tests/fixtures", kind, name, file].iter().collect()
}

pub(super) fn model_file(name: &str, file: &str) -> Option<Vec<u8>> {
    std::fs::read(path("models", name, file)).ok()
}

pub(super) fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("a fixture is JSON")
}

pub(super) fn expected(name: &str, file: &str) -> Value {
    json(&std::fs::read(path("expected", name, file)).expect("a fixture's expectation"))
}

pub(super) fn tokenizer(name: &str) -> Tokenizer {
    let file = |f: &str| model_file(name, f);
    let (t, c, m) = (file("tokenizer.json"), file("tokenizer_config.json"), file("special_tokens_map.json"));
    let (g, k) = (file("generation_config.json"), file("config.json"));
    let files = TokenizerFiles {
        tokenizer_json: t.as_deref(),
        tokenizer_config: c.as_deref(),
        special_tokens_map: m.as_deref(),
        generation_config: g.as_deref(),
        config: k.as_deref(),
        ..Default::default()
    };
    Tokenizer::from_files(&files).expect("a fixture's tokenizer")
}

pub(super) fn template(name: &str, tokenizer: &Tokenizer) -> ChatTemplate {
    let jinja = model_file(name, "chat_template.jinja").map(|b| String::from_utf8(b).expect("UTF-8"));
    let config = model_file(name, "tokenizer_config.json").map(|b| json(&b));
    ChatTemplate::from_checkpoint(jinja.as_deref(), config.as_ref(), None, false, Some(tokenizer))
        .expect("it parses")
        .expect("there is one")
}

pub(super) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|v| v.as_u64().expect("an id") as u32).collect()
}
