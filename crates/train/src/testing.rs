//! Fixtures for the tests of this crate.

use bayan_generate::text::{ChatTemplate, Tokenizer, TokenizerFiles};
use serde_json::Value;
use std::path::PathBuf;

pub(crate) fn path(parts: &[&str]) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../tests/fixtures"].iter().chain(parts).collect()
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
