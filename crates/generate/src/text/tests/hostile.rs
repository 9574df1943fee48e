//! Hostile files: templates that never end or grow without bound, and bytes that are not a protobuf. All must end in an
//! error.

use super::sentencepiece::{llama2_model, read};
use super::*;
use crate::text::{ChatInput, RenderLimits, TextError};
use proptest::prelude::*;

fn outcome(source: &str) -> Result<String, TextError> {
    ChatTemplate::new(source, None)?.render(&ChatInput::from_pairs([("user", "x")]))
}

#[test]
fn endless_templates_end() {
    let limit = |source: &str| {
        let error = outcome(source).unwrap_err();
        assert!(matches!(error, TextError::TemplateLimit { .. }), "{source}: {error}");
        error.to_string()
    };
    assert!(
        limit("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
            .contains("instructions")
    );
    assert!(limit("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("deeply"));
    assert!(limit("{% for a in range(99999) %}{{ 'x' * 1000000 }}{% endfor %}").contains("bytes"));
    let doubling = [
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(64) %}{% set ns.s %}{{ ns.s }}x{{ ns.s }}{% endset %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(64) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(64) %}{% set ns.s = [ns.s, ns.s]|join(ns.s) %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}",
        "{% macro f(s, n) %}{% if n > 0 %}{{ f(s ~ s, n - 1) }}{% endif %}{% endmacro %}{{ f('aaaaaaaa', 60) }}",
        "{% set s = ('a' * 99999999) ~ ('a' * 99999999) ~ ('a' * 99999999) %}",
        "{% for i in range(9999) %}{{ 'x'|indent(99999999) }}{% endfor %}",
        "{{ range(99999)|join('x' * 99999) }}",
    ];
    for source in doubling {
        assert!(limit(source).contains("bytes"), "{source}");
    }
    let raw = format!("{{% set x %}}{{% for i in range(99999) %}}{}{{% endfor %}}{{% endset %}}", "x".repeat(1 << 16));
    assert!(outcome(&raw).is_err_and(|e| e.to_string().contains("bytes")));
    assert!(limit(&"x".repeat(2 << 20)).contains("too long"));
}

#[test]
fn values_that_contain_themselves_are_not_printed() {
    for print in ["{{ ns }}", "{{ ns|tojson }}", "{{ [ns] }}", "{{ ns|string }}"] {
        let source = format!("{{% set ns = namespace() %}}{{% set ns.me = ns %}}{print}");
        assert!(outcome(&source).unwrap_err().to_string().contains("nested"), "{source}");
    }
}

#[test]
fn templates_that_include_themselves_end() {
    for source in
        ["{% include 'chat_template' %}", "{% extends 'chat_template' %}", "{% import 'chat_template' as t %}{{ t.x }}"]
    {
        assert!(outcome(source).is_err(), "{source}");
    }
}

#[test]
fn broken_templates_and_missing_fields_are_errors() {
    for source in [
        "{% if %}",
        "{{",
        "{% for x in y %}",
        "{{ messages[9].content.text }}",
        "{{ 'a' + 1 }}",
        "{{ f() }}",
        "{{ messages | nope }}",
    ] {
        assert!(outcome(source).is_err(), "{source}");
    }
    let raised = outcome("{{ raise_exception('لا أقبل هذا') }}").unwrap_err();
    assert!(matches!(&raised, TextError::TemplateRaised(m) if m == "لا أقبل هذا"), "{raised}");
}

#[test]
fn caps_can_be_set() {
    let mut template = ChatTemplate::new("{{ 'x' * 100 }}", None).unwrap();
    template.set_limits(RenderLimits { output_bytes: 99, ..Default::default() });
    assert!(matches!(template.render(&ChatInput::default()), Err(TextError::TemplateLimit { limit: 99, .. })));
    template.set_limits(RenderLimits { output_bytes: 100, ..Default::default() });
    assert_eq!(template.render(&ChatInput::default()).unwrap().len(), 100);
}

#[test]
fn a_truncated_or_flipped_model_is_an_error_or_another_model() {
    let model = llama2_model();
    for end in (0..model.len()).step_by(97) {
        let _ = read(&model[..end]);
    }
    for at in (0..model.len()).step_by(211) {
        let mut flipped = model.clone();
        flipped[at] ^= 0x55;
        let _ = read(&flipped);
    }
}

#[test]
fn parts_that_the_library_cannot_refuse_are_refused() {
    let with = |name: &str, part: &str| {
        let mut file: serde_json::Value = serde_json::from_slice(&small_tokenizer()).unwrap();
        file[name] = serde_json::from_str(part).unwrap();
        Tokenizer::from_json(file.to_string().as_bytes()).map(|_| ()).unwrap_err().to_string()
    };
    assert!(with("normalizer", r#"{"type": "Precompiled", "precompiled_charsmap": "!"}"#).contains("Precompiled"));
    assert!(
        with(
            "normalizer",
            r#"{"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "AAAA"}]}"#
        )
        .contains("Precompiled")
    );
    let cut = String::from_utf8(small_tokenizer()).unwrap().replacen(r#""decoder":{"#, r#""decoder":{b""#, 1);
    assert!(Tokenizer::from_json(cut.as_bytes()).map(|_| ()).unwrap_err().to_string().contains("JSON"));
}

/// A byte-level tokenizer of four tokens, as the library writes it.
fn small_tokenizer() -> Vec<u8> {
    let seed = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/tokenizer/bpe")).unwrap();
    let cut = seed.windows(2).position(|pair| pair == [0xff, 0xff]).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&seed[..cut]).unwrap();
    value.to_string().into_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn damaged_tokenizers_are_read_or_refused(damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"{}[]\",:0x\0\xff".to_vec())), 1..4)) {
        let mut bytes = small_tokenizer();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes) {
            let _ = tokenizer.encode("مرحبا ab", true).map(|ids| tokenizer.decode(&ids, false));
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
        let _ = Tokenizer::from_json(&bytes);
    }

    #[test]
    fn any_template_ends(parts in prop::collection::vec(prop::sample::select(vec![
        "{%", "%}", "{{", "}}", "{#", "#}", "-", " if ", " for x in ", "messages", "endif", "endfor", " set x = ", "'", "\"", "~", "*", "+", "|", "join",
        "replace('','aa')", "x", ".", "[0]", "(", ")", "range(9)", "generation", "endgeneration", " raw ", " endraw ", "ج", "9", "macro f()", "endmacro", "f()",
        "\n", "content", "loop.", "tojson(indent=4)", ":", ",", "not ", " is ", " in ", "{% for m in messages %}{{ m.content }}{% endfor %}", "{{ x }}",
    ]), 0..24)) {
        let _ = outcome(&parts.concat());
    }
}
