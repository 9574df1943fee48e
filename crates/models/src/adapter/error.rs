//! What can be wrong with an adapter.

use bayan_weights::WeightsError;

/// An error while a PEFT adapter is read, matched with a base model or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A field of adapter_config.json cannot be honoured, or is not what it must be.
    #[error("adapter_config.json: `{field}`: expected {expected}, got {got}; {remedy}")]
    Config {
        /// The field, by PEFT's name.
        field: String,
        /// What would do.
        expected: String,
        /// What stands there.
        got: String,
        /// What to do.
        remedy: String,
    },
    /// A tensor that does not belong into a LoRA adapter, is missing, or has a wrong shape.
    #[error("adapter tensor {name:?}: expected {expected}, got {got}; {remedy}")]
    Tensor {
        /// The tensor's name in the file, or the module's.
        name: String,
        /// What would do.
        expected: String,
        /// What was found.
        got: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The files themselves.
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

    pub(crate) fn tensor(
        name: &str,
        expected: impl Into<String>,
        got: impl Into<String>,
        remedy: &'static str,
    ) -> Self {
        Self::Tensor { name: shortened(name), expected: expected.into(), got: got.into(), remedy }
    }
}

/// At most 120 characters of something a stranger wrote.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}
