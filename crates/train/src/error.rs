//! Errors of a training run outside the engine.
//!
//! One enum for the crate, because callers print it. Bad data rows ([`BadRow`]) are the exception: with `skip_bad` they
//! are counted instead of returned.

use std::fmt;
use std::io;
use std::path::Path;

use bayan_generate::text::TextError;
use bayan_models::AdapterError;

/// The result type of this crate.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
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
    /// A data file is not what its name says, or contains nothing to train on.
    #[error("{file}: expected {expected}, got {got}; {remedy}")]
    Data {
        /// The file.
        file: String,
        /// What was expected.
        expected: String,
        /// What was found.
        got: String,
        /// What to do.
        remedy: String,
    },
    /// One row of a data file.
    #[error("{0}; fix the row, or pass --skip-bad to count such rows instead of stopping")]
    Row(BadRow),
    /// A recipe field or flag is invalid.
    #[error("recipe: `{field}`: expected {expected}, got {got}; {remedy}")]
    Recipe {
        /// The field.
        field: String,
        /// What was expected.
        expected: String,
        /// What was given.
        got: String,
        /// What to do.
        remedy: String,
    },
    /// A run cannot be resumed from a checkpoint.
    #[error("checkpoint {path}: expected {expected}, got {got}; {remedy}")]
    Checkpoint {
        /// Its directory.
        path: String,
        /// What was expected.
        expected: String,
        /// What was found.
        got: String,
        /// What to do.
        remedy: String,
    },
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The adapter is invalid.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

impl TrainError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.display().to_string(), source }
    }

    pub(crate) fn data(
        file: &str,
        expected: impl Into<String>,
        got: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Data { file: file.to_owned(), expected: expected.into(), got: got.into(), remedy: remedy.into() }
    }

    pub(crate) fn recipe(
        field: &str,
        expected: impl Into<String>,
        got: impl fmt::Display,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Recipe {
            field: field.to_owned(),
            expected: expected.into(),
            got: shortened(&got.to_string(), 120),
            remedy: remedy.into(),
        }
    }

    pub(crate) fn checkpoint(
        path: &Path,
        expected: impl Into<String>,
        got: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Checkpoint {
            path: path.display().to_string(),
            expected: expected.into(),
            got: got.into(),
            remedy: remedy.into(),
        }
    }
}

/// The place of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, as the user named it.
    pub file: std::sync::Arc<str>,
    /// The line number (jsonl, csv; json: where the row begins) or, in parquet, the row number; from 1.
    pub number: u64,
    /// `line` or `row`.
    pub unit: &'static str,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.file, self.unit, self.number)
    }
}

/// A row that cannot be made an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Its place.
    pub place: Place,
    /// The field, or empty when the whole row is wrong.
    pub field: String,
    /// What was expected and what was found.
    pub problem: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "{}: {}", self.place, self.problem),
            field => write!(f, "{}: field `{field}`: {}", self.place, self.problem),
        }
    }
}

/// At most `limit` characters of untrusted text.
pub(crate) fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// The known name nearest to a misspelt one, if it is near enough.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = shortened(&name.to_lowercase().replace('-', "_"), 64);
    let scored = known.into_iter().map(|k| (distance(&name, k), k)).min()?;
    (scored.0 <= (name.chars().count() / 2).clamp(1, 4)).then_some(scored.1)
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["learning_rate", "rank", "alpha"];
        assert_eq!(nearest("learning-rat", known), Some("learning_rate"));
        assert_eq!(nearest("alhpa", known), Some("alpha"));
        assert_eq!(nearest("zzzzzzzzzz", known), None);
    }

    #[test]
    fn a_bad_row_names_file_line_and_field() {
        let row = BadRow {
            place: Place { file: "a.jsonl".into(), number: 3, unit: "line" },
            field: "messages".into(),
            problem: "missing".into(),
        };
        assert_eq!(row.to_string(), "a.jsonl: line 3: field `messages`: missing");
    }
}
