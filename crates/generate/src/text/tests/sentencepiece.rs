//! A tokenizer.model written from the LLaMA-2 fixture's vocabulary, read, and compared with the fixture's ids.

use super::*;
use crate::text::TokenizerFiles;
use std::collections::HashMap;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes_field(number: u64, bytes: &[u8], out: &mut Vec<u8>) {
    varint(number << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend(bytes);
}

fn number_field(number: u64, value: u64, out: &mut Vec<u8>) {
    varint(number << 3, out);
    varint(value, out);
}

pub(super) fn piece(text: &str, score: f32, kind: u64) -> Vec<u8> {
    let (mut piece, mut out) = (Vec::new(), Vec::new());
    bytes_field(1, text.as_bytes(), &mut piece);
    varint(2 << 3 | 5, &mut piece);
    piece.extend(score.to_le_bytes());
    number_field(3, kind, &mut piece);
    bytes_field(1, &piece, &mut out);
    out
}

pub(super) fn settings(model_type: u64, charsmap: &[u8], remove_extra_whitespaces: bool) -> Vec<u8> {
    let (mut trainer, mut normalizer, mut out) = (Vec::new(), Vec::new(), Vec::new());
    number_field(3, model_type, &mut trainer);
    number_field(35, 1, &mut trainer);
    bytes_field(1, b"identity", &mut normalizer);
    bytes_field(2, charsmap, &mut normalizer);
    number_field(3, 1, &mut normalizer);
    number_field(4, u64::from(remove_extra_whitespaces), &mut normalizer);
    bytes_field(2, &trainer, &mut out);
    bytes_field(3, &normalizer, &mut out);
    out
}

/// The fixture's tokenizer.json as a SentencePiece model. A piece's score is its rank in SentencePiece's numbering:
/// minus the position of the first merge that produces it.
pub(super) fn llama2_model() -> Vec<u8> {
    let file = json(&model_file("llama2_mha", "tokenizer.json").unwrap());
    let vocab = file["model"]["vocab"].as_object().unwrap();
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, merge) in file["model"]["merges"].as_array().unwrap().iter().enumerate() {
        let joined: String = merge.as_array().unwrap().iter().map(|side| side.as_str().unwrap()).collect();
        ranks.entry(joined).or_insert(rank);
    }
    let mut pieces: Vec<(&String, u64)> = vocab.iter().map(|(text, id)| (text, id.as_u64().unwrap())).collect();
    pieces.sort_by_key(|(_, id)| *id);
    let mut out = Vec::new();
    for (i, (text, id)) in pieces.iter().enumerate() {
        assert_eq!(i as u64, *id, "ids without gaps");
        let (kind, score) = match text.as_str() {
            "<unk>" => (2, 0.0),
            "<s>" | "</s>" => (3, 0.0),
            byte if byte.starts_with("<0x") => (6, 0.0),
            _ => (1, -(ranks.get(*text).copied().unwrap_or(100_000) as f32)),
        };
        out.extend(piece(text, score, kind));
    }
    out.extend(settings(2, b"", false));
    out
}

pub(super) fn read(model: &[u8]) -> crate::text::Result<Tokenizer> {
    let config = model_file("llama2_mha", "tokenizer_config.json");
    Tokenizer::from_files(&TokenizerFiles {
        tokenizer_model: Some(model),
        tokenizer_config: config.as_deref(),
        ..Default::default()
    })
}

#[test]
fn ids_are_those_of_the_same_vocabulary_as_json() {
    let tokenizer = read(&llama2_model()).unwrap();
    let cases = expected("llama2_mha", "tokenizer_cases.json");
    for case in cases["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids_special"]), "{text:?}");
        assert_eq!(tokenizer.decode(&ids(&case["ids"]), false).unwrap(), case["decoded"], "{text:?}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), &[2][..]));
}

#[test]
fn merges_with_equal_scores_prefer_long_left_parts() {
    // "abc" = "ab"+"c" or "a"+"bc" have the same score, so the lengths determine the order of the merges.
    let mut model = piece("<unk>", 0.0, 2);
    for (text, score) in [("a", -9.0), ("b", -9.0), ("c", -9.0), ("▁", -9.0), ("ab", -2.0), ("bc", -1.0), ("abc", -3.0)]
    {
        model.extend(piece(text, score, 1));
    }
    model.extend(settings(2, b"", false));
    let json: Value =
        serde_json::from_slice(&crate::text::sentencepiece::to_tokenizer_json(&model, &Value::Null).unwrap()).unwrap();
    assert_eq!(json["model"]["merges"], serde_json::json!([["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]]));
}

#[test]
fn models_that_cannot_be_followed_are_refused_with_a_remedy() {
    let with = |settings: Vec<u8>| [piece("<unk>", 0.0, 2), piece("a", -1.0, 1), settings].concat();
    let message = |model: &[u8]| read(model).unwrap_err().to_string();
    assert!(message(&with(settings(1, b"", false))).contains("expected a BPE model"));
    assert!(message(&with(settings(2, b"x", false))).contains("precompiled character map"));
    assert!(message(&with(settings(2, b"", true))).contains("remove_extra_whitespaces"));
    assert!(message(b"").contains("found none"));
    assert!(
        message(&[piece("a", 0.0, 1), piece("a", 0.0, 1), settings(2, b"", false)].concat()).contains("as id 0 and 1")
    );
    assert!(message(&piece(&"x".repeat(600), 0.0, 1)).contains("600 bytes"));
    assert!(message(&[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]).contains("bytes, where 0 are left"));
}

#[test]
fn ids_are_those_of_the_sentencepiece_library() {
    let file = |name: &str| {
        std::fs::read(format!("{}/../../tests/fixtures/sentencepiece/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    let (model, config) = (file("tokenizer.model"), file("tokenizer_config.json"));
    let tokenizer = Tokenizer::from_files(&TokenizerFiles {
        tokenizer_model: Some(&model),
        tokenizer_config: Some(&config),
        ..Default::default()
    })
    .unwrap();
    let cases = json(&file("cases.json"));
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() > 70);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        // The library recognizes no special tokens in texts; in untrusted text they stay text.
        assert_eq!(tokenizer.encode_untrusted(text).unwrap(), ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.decode(&ids(&case["ids"]), false).unwrap(), case["decoded"], "{text:?}");
    }
}
