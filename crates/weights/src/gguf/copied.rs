//! The tokenizer of a GGUF file as it is written to another one: every key is copied, so that nothing is lost on the
//! way through Hugging Face's files.

use super::arch::Arch;
use super::header::{Value, read_header};
use super::writer::Entry;
use super::{find, pretokenizers};
use crate::error::WeightsError;
use crate::source::Source;

/// The tokenizer's keys of the GGUF file in `source`; `None` if it has no GGUF file, or one without a tokenizer.
///
/// # Errors
/// A damaged file, or a value that a tokenizer does not have.
pub async fn tokenizer_entries(source: &dyn Source) -> Result<Option<Vec<(String, Entry)>>, WeightsError> {
    let Some(file) = find(source).await? else { return Ok(None) };
    let header = read_header(source, &file).await?;
    let mut entries = Vec::new();
    for (key, value) in header.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        let entry = entry(value).ok_or_else(|| WeightsError::Unsupported {
            what: format!("{file}: writing the metadata key {key:?} to another file"),
            remedy: "take the safetensors checkpoint of this model".to_owned(),
        })?;
        entries.push((key.clone(), entry));
    }
    // Where the file does not name its rules, the name by which it was read is written.
    let arch = header.text("general.architecture").and_then(Arch::by_gguf);
    let tokens = header.texts("tokenizer.ggml.tokens");
    let is_bpe = header.text("tokenizer.ggml.model") == Some("gpt2");
    if let (Some(arch), Some(tokens), true) = (arch, tokens, is_bpe) {
        let name = pretokenizers::name_in(&file, &header, arch, tokens, &mut Vec::new()).to_owned();
        entries.retain(|(key, _)| key != "tokenizer.ggml.pre");
        entries.push(("tokenizer.ggml.pre".to_owned(), Entry::Text(name)));
    }
    Ok(tokens.is_some().then_some(entries))
}

fn entry(value: &Value) -> Option<Entry> {
    Some(match value {
        Value::Integer(value) => Entry::Number(u32::try_from(*value).ok()?),
        Value::Float(value) => Entry::Float(*value as f32),
        Value::Flag(value) => Entry::Flag(*value),
        Value::Text(value) => Entry::Text(value.clone()),
        Value::Integers(values) => {
            Entry::Numbers(values.iter().map(|value| i32::try_from(*value).ok()).collect::<Option<_>>()?)
        }
        Value::Floats(values) => Entry::Floats(values.iter().map(|value| *value as f32).collect()),
        Value::Texts(values) => Entry::Texts(values.clone()),
        Value::Flags(_) => return None,
    })
}
