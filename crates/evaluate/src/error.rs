//! Errors of an evaluation.

use std::io;
use std::path::Path;

use bayan_generate::GenerateError;
use bayan_generate::text::TextError;
use bayan_train::{BadRow, TrainError};

/// The result type of this crate.
pub type Result<T, E = EvalError> = std::result::Result<T, E>;

/// An error of an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A data file is not what its name says, or cannot be read.
    #[error(transparent)]
    Data(#[from] TrainError),
    /// A row of a data file cannot be made an item.
    #[error("{0}; fix the row, or the file's columns with --columns")]
    Row(BadRow),
    /// The operating system refused a file operation.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// open, read, write, …
        action: &'static str,
        /// The file or directory.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A setting, a file or an answer is not as expected.
    #[error("{what}: expected {expected}, got {got}; {remedy}")]
    Unexpected {
        /// What it is.
        what: String,
        /// What was expected.
        expected: String,
        /// What was found.
        got: String,
        /// What to do.
        remedy: String,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] GenerateError),
}

impl EvalError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.display().to_string(), source }
    }

    pub(crate) fn unexpected(
        what: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Unexpected { what: what.into(), expected: expected.into(), got: got.into(), remedy: remedy.into() }
    }
}
