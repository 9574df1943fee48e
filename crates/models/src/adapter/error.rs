//! Errors of LoRA adapters.

use bayan_weights::WeightsError;

/// An error while a PEFT adapter is read, matched with a base model, or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A field of adapter_config.json is not supported, or has an invalid value.
    #[error("adapter_config.json: `{field}`: expected {expected}, got {got}; {remedy}")]
    Config {
        /// The field, by PEFT's name.
        field: String,
        /// The permitted values.
        expected: String,
        /// The file's value.
        got: String,
        /// What the user can do.
        remedy: String,
    },
    /// A tensor that does not belong in a LoRA adapter, is missing, or has the wrong shape.
    #[error("adapter tensor {name:?}: expected {expected}, got {got}; {remedy}")]
    Tensor {
        /// The tensor's name in the file, or the module's.
        name: String,
        /// What was expected.
        expected: String,
        /// What was found.
        got: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// The files could not be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl AdapterError {
    pub(crate) fn config(
        field: &str,
        expected: impl Into<String>,
        got: impl std::fmt::Display,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Config {
            field: field.to_owned(),
            expected: expected.into(),
            got: shortened(&got.to_string()),
            remedy: remedy.into(),
        }
    }

    /// An error of the tensor or module `name`.
    pub fn tensor(name: &str, expected: impl Into<String>, got: impl Into<String>, remedy: &'static str) -> Self {
        Self::Tensor { name: shortened(name), expected: expected.into(), got: got.into(), remedy }
    }
}

/// Untrusted text, shortened to at most 120 characters.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}
