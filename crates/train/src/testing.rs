//! Access to the fixtures for this crate's tests.

use bayan_generate::text::{ChatTemplate, Tokenizer, TokenizerFiles};
use serde_json::Value;
use std::path::PathBuf;

pub(crate) fn path(parts: &[&str]) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../tests/fixtures"].iter().chain(parts).collect()
}

/// The checkpoints of tests/fixtures/models, sorted.
pub(crate) fn models() -> Vec<String> {
    names(&["models"])
}

/// The names without extension in a folder of the fixtures, sorted.
pub(crate) fn names(folder: &[&str]) -> Vec<String> {
    let entries = std::fs::read_dir(path(folder)).expect("fixtures").map(|entry| entry.expect("an entry").path());
    let mut names: Vec<String> =
        entries.map(|path| path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned()).collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

/// The first checkpoint of each architecture, sorted.
pub(crate) fn one_of_each_architecture() -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    let is_new = |model: &String| seen.insert(json(&path(&["models", model, "config.json"]))["model_type"].to_string());
    let found: Vec<String> = models().into_iter().filter(is_new).collect();
    assert_eq!(found.len(), bayan_models::supported().len(), "{found:?}");
    found
}

pub(crate) fn json(path: &std::path::Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).expect("a fixture is JSON")
}

pub(crate) fn lora_expected(case: &str) -> Value {
    json(&path(&["lora", case, "expected.json"]))
}

pub(crate) fn text(model: &str) -> (Tokenizer, ChatTemplate) {
    let file = |name: &str| std::fs::read(path(&["models", model, name])).ok();
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
    let tokenizer = Tokenizer::from_files(&files).expect("a fixture's tokenizer");
    let jinja = file("chat_template.jinja").map(|b| String::from_utf8(b).expect("UTF-8"));
    let config = c.as_deref().map(|b| serde_json::from_slice::<Value>(b).expect("JSON"));
    let template = ChatTemplate::from_checkpoint(jinja.as_deref(), config.as_ref(), None, false, Some(&tokenizer))
        .expect("it parses")
        .expect("one");
    (tokenizer, template)
}
