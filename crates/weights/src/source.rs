//! Sources of a checkpoint's bytes.
//!
//! [`Source`] is asynchronous because a browser has no other way to read; it is a trait object that needs no runtime,
//! so that a native caller can use any executor. Reads have an explicit offset and length, so that the caller controls
//! the memory. Rejected: `std::io::Read + Seek`, because it blocks and its cursor cannot be shared.

use crate::error::WeightsError;
use crate::formats::{Format, Planes};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

/// A boxed future that need not be `Send` (browser promises are not).
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A flat set of named files that can be read at any offset.
pub trait Source {
    /// The place of the source, for messages: a path, a URL, "memory".
    fn describe(&self) -> String;

    /// The size of `file` in bytes; `None` when it does not exist.
    fn size<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<u64>, WeightsError>>;

    /// Reads exactly `length` bytes of `file` from `offset`. Reading beyond the end is an error.
    fn read<'a>(&'a self, file: &'a str, offset: u64, length: usize) -> LocalFuture<'a, Result<Vec<u8>, WeightsError>>;

    /// The names of the files, if the source can list them: to find a GGUF file of any name, and for error messages.
    fn list(&self) -> Vec<String> {
        Vec::new()
    }

    /// Facts about the files that the user should know of: a guess that could be wrong, a loss.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Rows of a tensor as planes of a format, from a source that makes its weights up and can do so in any format; the
    /// same planes as those quantized from its bytes. `None`: read them.
    fn made_planes(&self, _tensor: &str, _rows: Range<usize>, _format: &'static dyn Format) -> Option<Planes> {
        None
    }

    /// The file that the user named, if the source was opened for a file.
    fn main_file(&self) -> Option<String> {
        None
    }
}

/// Whether `name` is a plain file name: no separators, no drive or stream colon, not `.` or `..`, no control
/// characters. Names in an index file are untrusted; this check keeps reads inside their directory.
pub fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.chars().any(|c| matches!(c, '/' | '\\' | ':') || c.is_control())
}

/// The error for a name that is not plain.
pub(crate) fn bad_name(place: &str, name: &str) -> WeightsError {
    WeightsError::Source {
        file: format!("{name:?}"),
        place: place.to_owned(),
        reason: "expected a plain file name without path separators or \"..\"; if an index file named it, do not trust that checkpoint".to_owned(),
    }
}

/// Files in memory: for tests, embedded checkpoints, and files dropped onto a page.
#[derive(Debug, Default, Clone)]
pub struct MemorySource {
    files: BTreeMap<String, Cow<'static, [u8]>>,
    place: Option<&'static str>,
}

impl MemorySource {
    /// An empty source.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same source under a name for people, such as "the embedded model"; it is "memory" otherwise.
    #[must_use]
    pub fn named(self, place: &'static str) -> Self {
        Self { place: Some(place), ..self }
    }

    /// The same source with one more file; a file of the same name is replaced.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        self.insert(name, bytes);
        self
    }

    /// Adds or replaces a file.
    pub fn insert(&mut self, name: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) {
        self.files.insert(name.into(), bytes.into());
    }

    /// Names and contents, by name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_ref()))
    }

    fn read_now(&self, file: &str, offset: u64, length: usize) -> Result<Vec<u8>, WeightsError> {
        let fail = |reason: String| WeightsError::Source { file: file.to_owned(), place: self.describe(), reason };
        let bytes = self.files.get(file).ok_or_else(|| fail("no such file".to_owned()))?;
        let range = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(length)?));
        let part = range.and_then(|range| bytes.get(range));
        part.map(<[u8]>::to_vec).ok_or_else(|| {
            fail(format!("asked for {length} bytes at offset {offset}, the file has {} bytes", bytes.len()))
        })
    }
}

impl Source for MemorySource {
    fn describe(&self) -> String {
        self.place.unwrap_or("memory").to_owned()
    }

    fn size<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<u64>, WeightsError>> {
        let size = self.files.get(file).map(|bytes| bytes.len() as u64);
        Box::pin(std::future::ready(Ok(size)))
    }

    fn read<'a>(&'a self, file: &'a str, offset: u64, length: usize) -> LocalFuture<'a, Result<Vec<u8>, WeightsError>> {
        Box::pin(std::future::ready(self.read_now(file, offset, length)))
    }

    fn list(&self) -> Vec<String> {
        self.files.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_only() {
        for good in ["config.json", "model-00001-of-00003.safetensors", "نموذج.safetensors", "..a"] {
            assert!(is_plain_file_name(good), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "a\\b", "C:x", "a\0b", "/etc/passwd"] {
            assert!(!is_plain_file_name(bad), "{bad}");
        }
    }

    #[test]
    fn memory_reads_are_bounded() {
        let source = MemorySource::new().with("a", vec![1, 2, 3]);
        assert_eq!(source.read_now("a", 1, 2).unwrap(), [2, 3]);
        assert!(source.read_now("a", 2, 2).is_err());
        assert!(source.read_now("a", u64::MAX, 1).is_err());
        assert!(source.read_now("a", 1, usize::MAX).is_err());
        assert!(source.read_now("b", 0, 0).is_err());
    }
}
