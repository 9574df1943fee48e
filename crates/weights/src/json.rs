//! JSON as checkpoints have it: with a byte order mark (Windows editors), and with `NaN` and `Infinity` (Python's
//! `json` writes them, although JSON has no such numbers).
//!
//! `Infinity` becomes the largest finite number, which means the same wherever a configuration has it: no limit. `NaN`
//! becomes null, which reads as a field that is missing. Rejected: a parser for JSON5, because it would accept comments
//! and trailing commas that transformers refuses.

use crate::contents::{Expected, refuse_other};
use crate::error::WeightsError;
use serde::de::DeserializeOwned;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The text of a file without its byte order mark.
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// Parses the JSON in `bytes`; `file` is its name for the error.
///
/// # Errors
/// Not JSON, or not of the expected form; a file that is something else (a web page, a Git LFS pointer, UTF-16).
pub fn parse<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T, WeightsError> {
    let text = without_mark(bytes);
    serde_json::from_slice(text).or_else(|error| {
        refuse_other(file, bytes, bytes.len() as u64, Expected::Json)?;
        let plain = plain_numbers(text).and_then(|text| serde_json::from_slice(&text).ok());
        plain.ok_or_else(|| WeightsError::malformed(file, format!("not the expected JSON: {error}")))
    })
}

/// The text with the numbers that only Python writes replaced; `None` if it has none.
pub fn plain_numbers(text: &[u8]) -> Option<Vec<u8>> {
    const NUMBERS: [(&[u8], &[u8]); 3] =
        [(b"-Infinity", b"-1.7976931348623157e308"), (b"Infinity", b"1.7976931348623157e308"), (b"NaN", b"null")];
    let (mut out, mut at, mut in_text, mut found) = (Vec::with_capacity(text.len()), 0, false, false);
    while at < text.len() {
        let rest = &text[at..];
        if !in_text && let Some((number, plain)) = NUMBERS.iter().find(|(number, _)| rest.starts_with(number)) {
            out.extend_from_slice(plain);
            (at, found) = (at + number.len(), true);
            continue;
        }
        // In a text, a backslash and the byte after it belong together.
        let width = if in_text && rest[0] == b'\\' { rest.len().min(2) } else { 1 };
        in_text ^= rest[0] == b'"';
        out.extend_from_slice(&rest[..width]);
        at += width;
    }
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(text: &str) -> Value {
        parse("config.json", text.as_bytes()).expect("JSON")
    }

    #[test]
    fn a_byte_order_mark_is_no_error() {
        assert_eq!(read("\u{feff}{\"a\": 1}"), json!({"a": 1}));
    }

    #[test]
    fn pythons_numbers_are_read() {
        let value = read(r#"{"a": NaN, "b": [0.0, Infinity], "c": -Infinity, "d": "NaN \" Infinity\\"}"#);
        assert_eq!(value["a"], Value::Null);
        assert_eq!(value["b"][1].as_f64(), Some(f64::MAX));
        assert_eq!(value["c"].as_f64(), Some(f64::MIN));
        assert_eq!(value["d"], "NaN \" Infinity\\", "texts are left as they are");
    }

    #[test]
    fn other_mistakes_stay_errors() {
        for wrong in ["{", "{\"a\": NaN", "{\"a\": Inf}", "\"\\", ""] {
            let error = parse::<Value>("config.json", wrong.as_bytes()).expect_err("no JSON").to_string();
            assert!(error.contains("config.json"), "{error}");
        }
    }

    #[test]
    fn other_files_are_named() {
        for (bytes, what) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"[..], "a Git LFS pointer"),
            (b"\n<!DOCTYPE html><html>", "a web page"),
            (b"\xff\xfe{\0}\0", "UTF-16"),
        ] {
            let error = parse::<Value>("tokenizer.json", bytes).expect_err("no JSON").to_string();
            assert!(error.contains(what) && error.contains("tokenizer.json"), "{error}");
        }
    }
}
