//! Checkpoints in local directories: the only module of this crate that uses the file system (not in the browser).

mod quantize;
mod writer;

use crate::checkpoint::unsupported_file;
use crate::contents::{Expected, FIRST_BYTES, is_gguf, refuse_other};
use crate::error::WeightsError;
use crate::source::{LocalFuture, Source, bad_name, is_plain_file_name};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;

pub use quantize::{Progress, Report, TensorReport, copy_side_files, quantize_checkpoint, side_files};
pub use writer::{CheckpointWriter, TensorSpec, WriteOptions};

/// The files of one directory, read at any offset; names with separators or `..` are refused.
#[derive(Debug)]
pub struct DirectorySource {
    path: PathBuf,
    /// The file that the user named, if the path was a file.
    main: Option<String>,
    open: RefCell<HashMap<String, Rc<File>>>,
}

/// Most files kept open for the next read; when one more is needed, all are closed and opened again on demand.
const MAX_OPEN_FILES: usize = 64;

impl DirectorySource {
    /// Opens the directory at `path`, or the GGUF file there (of any name) with its other parts.
    ///
    /// Errors, each with a remedy: the path does not exist (it may be a hub name), or is a single file of another kind.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let shown = path.display().to_string();
        match std::fs::metadata(path) {
            Ok(data) if data.is_dir() => Ok(Self { path: path.to_owned(), main: None, open: RefCell::default() }),
            Ok(data) if is_gguf_file(path, &shown, data.len())? => {
                let main = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                Ok(Self { path: parent.to_owned(), main, open: RefCell::default() })
            }
            Ok(_) if [".bin", ".pt", ".pth"].iter().any(|suffix| shown.ends_with(suffix)) => {
                Err(unsupported_file(&shown))
            }
            Ok(_) => Err(WeightsError::Unsupported {
                what: format!("{shown}, a single file"),
                remedy: "give a GGUF file, or the directory that contains config.json and model.safetensors".to_owned(),
            }),
            Err(error) if error.kind() == ErrorKind::NotFound && looks_like_hub_name(path) => {
                Err(WeightsError::Unsupported {
                    what: format!("{shown}: there is no such directory, and a hub name in its place"),
                    remedy: format!(
                        "download it first, for example `hf download {shown} --local-dir model`, and give that directory"
                    ),
                })
            }
            Err(source) => Err(WeightsError::Io { action: "open", path: shown, source }),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, name: &str) -> Result<Rc<File>, WeightsError> {
        if !is_plain_file_name(name) {
            return Err(bad_name(&self.describe(), name));
        }
        if let Some(file) = self.open.borrow().get(name) {
            return Ok(file.clone());
        }
        let path = self.path.join(name);
        let file = Rc::new(File::open(&path).map_err(|source| io_error("open", &path, source))?);
        let mut open = self.open.borrow_mut();
        if open.len() >= MAX_OPEN_FILES {
            open.clear();
        }
        open.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn size_now(&self, name: &str) -> Result<Option<u64>, WeightsError> {
        if !is_plain_file_name(name) {
            return Err(bad_name(&self.describe(), name));
        }
        let path = self.path.join(name);
        match std::fs::metadata(&path) {
            Ok(data) => Ok(data.is_file().then_some(data.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error("inspect", &path, source)),
        }
    }

    fn read_now(&self, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, WeightsError> {
        let fail = |source| io_error("read", &self.path.join(name), source);
        let file = self.file(name)?;
        let size = file.metadata().map_err(fail)?.len();
        if offset.checked_add(length as u64).is_none_or(|end| end > size) {
            return Err(WeightsError::Source {
                file: name.to_owned(),
                place: self.describe(),
                reason: format!("asked for {length} bytes at offset {offset}, the file has {size} bytes"),
            });
        }
        let mut bytes = vec![0; length];
        read_exact_at(&file, &mut bytes, offset).map_err(fail)?;
        Ok(bytes)
    }
}

impl Source for DirectorySource {
    fn describe(&self) -> String {
        match &self.main {
            Some(file) => self.path.join(file).display().to_string(),
            None => self.path.display().to_string(),
        }
    }

    fn main_file(&self) -> Option<String> {
        self.main.clone()
    }

    fn size<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<u64>, WeightsError>> {
        Box::pin(std::future::ready(self.size_now(file)))
    }

    fn read<'a>(&'a self, file: &'a str, offset: u64, length: usize) -> LocalFuture<'a, Result<Vec<u8>, WeightsError>> {
        Box::pin(std::future::ready(self.read_now(file, offset, length)))
    }

    fn list(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// Whether the file at `path` is GGUF, by its first bytes or, if these say nothing, by its name.
///
/// Errors: it is something else, or cannot be read.
fn is_gguf_file(path: &Path, shown: &str, size: u64) -> Result<bool, WeightsError> {
    let mut first = Vec::new();
    let read =
        File::open(path).and_then(|file| io::Read::read_to_end(&mut io::Read::take(file, FIRST_BYTES), &mut first));
    read.map_err(|source| io_error("open", path, source))?;
    let named = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    let expected = if named { Expected::Gguf } else { Expected::Model };
    Ok(is_gguf(&first) || refuse_other(shown, &first, size, expected).map(|()| named)?)
}

/// Whether a path looks like `organisation/name`: relative, with the characters that hubs allow.
fn looks_like_hub_name(path: &Path) -> bool {
    let Some(text) = path.to_str() else { return false };
    let parts: Vec<&str> = text.split('/').collect();
    let plain = |part: &&str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    parts.len() == 2 && parts.iter().all(plain)
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> WeightsError {
    WeightsError::Io { action, path: path.display().to_string(), source }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
