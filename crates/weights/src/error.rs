//! Errors of reading and writing checkpoints.
//!
//! One enum for the crate, because callers (command line, page, server) print these and seldom branch on them. Each
//! message says what was done, what was expected, what was found and what to do. Rejected: boxed opaque errors, because
//! a test could not distinguish a false header from a missing file.

use std::io;

/// An error of this crate. `Display` addresses the person who supplied the checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused a file operation.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The operation: "open", "read", "write", …
        action: &'static str,
        /// The file or directory.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A source other than the file system failed.
    #[error("cannot read {file} from {place}: {reason}")]
    Source {
        /// The file inside the source.
        file: String,
        /// `Source::describe` of the source.
        place: String,
        /// The source's reason.
        reason: String,
    },
    /// A required file is missing.
    #[error("{place} has no {file}; {remedy}")]
    MissingFile {
        /// The file looked for.
        file: String,
        /// Where it was looked for.
        place: String,
        /// What to do.
        remedy: String,
    },
    /// The bytes violate the format's rules. Nothing in the file was used.
    #[error("{file} is damaged or not what its name says: {problem}; {remedy}")]
    Malformed {
        /// The file.
        file: String,
        /// The violated rule: what was expected and what was found.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A known feature that this version does not support.
    #[error("{what} is not supported: {remedy}")]
    Unsupported {
        /// The feature.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// A file is something else than its name says.
    #[error("{file} is {found}: {remedy}")]
    Contents {
        /// The file.
        file: String,
        /// What it is.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// No tensor of that name.
    #[error("no tensor named {name:?} in {place}; {}", near_text(.near))]
    MissingTensor {
        /// The name asked for.
        name: String,
        /// Where it was looked for.
        place: String,
        /// The most similar existing names, best first.
        near: Vec<String>,
    },
    /// A request outside a tensor's rows or shape: a mistake of the caller, or a config that disagrees with the
    /// weights.
    #[error("tensor {tensor:?}: expected {expected}, got {got}")]
    Request {
        /// The tensor.
        tensor: String,
        /// What was expected.
        expected: String,
        /// What was requested.
        got: String,
    },
    /// A weight is NaN or infinite.
    #[error(
        "tensor {tensor:?} holds {value} at flat index {index}: expected finite weights; the file is damaged or the training that made it diverged, so get it again"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Row-major index of the first such value in the tensor.
        index: u64,
        /// The value.
        value: f32,
    },
    /// A weight, or the scale of its block, is too large for the format.
    #[error(
        "tensor {tensor:?}: the value {value} at flat index {index} does not fit the format {format}; keep this tensor in f32"
    )]
    Unrepresentable {
        /// The tensor.
        tensor: String,
        /// Row-major index of the value in the tensor.
        index: u64,
        /// The value.
        value: f32,
        /// The format's name.
        format: &'static str,
    },
    /// A quantized tensor was requested in another quantized format.
    #[error(
        "tensor {tensor:?} is stored as {stored} and cannot become {wanted}: quantizing twice adds both errors; use {stored}, or quantize again from the original checkpoint"
    )]
    Requantize {
        /// The tensor.
        tensor: String,
        /// Its format in the file.
        stored: &'static str,
        /// The requested format.
        wanted: &'static str,
    },
}

/// The remedy for damaged files.
pub(crate) const DOWNLOAD_AGAIN: &str = "download or copy it again and compare its size and checksum";

fn near_text(near: &[String]) -> String {
    if near.is_empty() {
        "the checkpoint has no tensors".to_owned()
    } else {
        format!("similar names: {}", near.join(", "))
    }
}

impl WeightsError {
    pub(crate) fn malformed(file: &str, problem: impl Into<String>) -> Self {
        Self::Malformed { file: file.to_owned(), problem: problem.into(), remedy: DOWNLOAD_AGAIN }
    }
}
