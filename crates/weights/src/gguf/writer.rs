//! Writes GGUF, version 3: a header of the declared tensors, then their rows in order.
//!
//! A format is written as the block type with the same numbers ([`Format::block_types`]), or as f16 where there is
//! none.

use super::block_type::BlockType;
use crate::error::WeightsError;
use crate::formats::{Format, Planes};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const ALIGNMENT: u64 = 32;

/// A metadata value to write.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A text.
    Text(String),
    /// An unsigned number.
    Number(u32),
    /// A float.
    Float(f32),
    /// A boolean.
    Flag(bool),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of numbers.
    Numbers(Vec<i32>),
    /// A list of floats.
    Floats(Vec<f32>),
    /// A list of booleans.
    Flags(Vec<bool>),
}

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct Declared {
    /// llama.cpp's name.
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// The type of its blocks.
    pub kind: BlockType,
}

impl Declared {
    fn size_bytes(&self) -> u64 {
        let count: u64 = self.shape.iter().map(|&size| size as u64).product();
        count / self.kind.block() as u64 * self.kind.bytes() as u64
    }
}

/// A file that is either complete or absent: it is written under a temporary name and renamed at the end.
#[derive(Debug)]
pub struct GgufWriter {
    out: Option<BufWriter<File>>,
    partial: PathBuf,
    target: PathBuf,
    declared: Vec<Declared>,
    current: usize,
    written: u64,
}

fn io_error(action: &'static str, path: &Path, source: std::io::Error) -> WeightsError {
    WeightsError::Io { action, path: path.display().to_string(), source }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn push_list<T>(out: &mut Vec<u8>, kind: u32, values: &[T], push: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(kind.to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| push(out, value));
}

fn push_entry(out: &mut Vec<u8>, key: &str, entry: &Entry) {
    push_text(out, key);
    let (kind, value): (u32, Vec<u8>) = match entry {
        Entry::Number(value) => (4, value.to_le_bytes().to_vec()),
        Entry::Float(value) => (6, value.to_le_bytes().to_vec()),
        Entry::Flag(value) => (7, vec![u8::from(*value)]),
        Entry::Text(text) => {
            let mut bytes = Vec::new();
            push_text(&mut bytes, text);
            (8, bytes)
        }
        Entry::Texts(texts) => {
            let mut bytes = Vec::new();
            push_list(&mut bytes, 8, texts, |out, text| push_text(out, text));
            (9, bytes)
        }
        Entry::Numbers(values) => {
            let mut bytes = Vec::new();
            push_list(&mut bytes, 5, values, |out, value| out.extend(value.to_le_bytes()));
            (9, bytes)
        }
        Entry::Flags(values) => {
            let mut bytes = Vec::new();
            push_list(&mut bytes, 7, values, |out, value| out.push(u8::from(*value)));
            (9, bytes)
        }
        Entry::Floats(values) => {
            let mut bytes = Vec::new();
            push_list(&mut bytes, 6, values, |out, value| out.extend(value.to_le_bytes()));
            (9, bytes)
        }
    };
    out.extend(kind.to_le_bytes());
    out.extend(value);
}

impl GgufWriter {
    /// Starts a file with its metadata and the declared tensors, which must be written in this order.
    ///
    /// Errors: a file operation was refused, or the file exists already.
    pub fn create(target: &Path, metadata: &[(String, Entry)], declared: Vec<Declared>) -> Result<Self, WeightsError> {
        if target.exists() {
            return Err(WeightsError::Unsupported {
                what: format!("writing {}: it exists", target.display()),
                remedy: "name another file, or remove this one first".to_owned(),
            });
        }
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((declared.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        metadata.iter().for_each(|(key, entry)| push_entry(&mut header, key, entry));
        let mut offset = 0u64;
        for tensor in &declared {
            push_text(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&size| header.extend((size as u64).to_le_bytes()));
            header.extend(tensor.kind.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += tensor.size_bytes().next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        let mut partial = target.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(|source| io_error("create", &partial, source))?;
        let mut writer = Self {
            out: Some(BufWriter::new(file)),
            partial,
            target: target.to_owned(),
            declared,
            current: 0,
            written: 0,
        };
        writer.push(&header)?;
        writer.written = 0;
        Ok(writer)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), WeightsError> {
        let Some(out) = &mut self.out else { return Ok(()) };
        out.write_all(bytes).map_err(|source| io_error("write", &self.partial, source))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Appends stored bytes to the next unfinished tensor.
    ///
    /// Errors: more bytes than declared, or a write was refused.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WeightsError> {
        let Some(size) = self.declared.get(self.current).map(Declared::size_bytes) else {
            return Err(self.disagree("no more tensors", bytes.len() as u64));
        };
        if self.written + bytes.len() as u64 > size {
            return Err(self.disagree(&format!("{size} bytes of it"), self.written + bytes.len() as u64));
        }
        self.push(bytes)?;
        if self.written == size {
            let padding = (size.next_multiple_of(ALIGNMENT) - size) as usize;
            self.push(&vec![0; padding])?;
            (self.current, self.written) = (self.current + 1, 0);
        }
        Ok(())
    }

    fn disagree(&self, expected: &str, got: u64) -> WeightsError {
        let tensor = self.declared.get(self.current).map_or("none", |tensor| tensor.name.as_str()).to_owned();
        WeightsError::Request { tensor, expected: expected.to_owned(), got: format!("{got} bytes") }
    }

    /// Completes the file.
    ///
    /// Errors: a tensor is missing, or a file operation was refused.
    pub fn finish(mut self) -> Result<(), WeightsError> {
        if self.current != self.declared.len() {
            return Err(self.disagree("all of its bytes before the file is finished", self.written));
        }
        let Some(mut out) = self.out.take() else { return Ok(()) };
        let synced = out.flush().and_then(|()| out.get_ref().sync_all());
        synced.map_err(|source| io_error("write", &self.partial, source))?;
        drop(out);
        fs::rename(&self.partial, &self.target).map_err(|source| io_error("rename", &self.partial, source))
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        self.out = None;
        let _ = fs::remove_file(&self.partial);
    }
}

/// The block type in which rows of `k` in this format are written.
pub fn block_type(format: &dyn Format, k: usize) -> BlockType {
    let fits = |kind: &&BlockType| k.is_multiple_of(kind.block());
    format.block_types().written.iter().find(fits).copied().unwrap_or(BlockType::F16)
}

/// Planes as blocks of one of their format's types; dense planes are copied.
///
/// Errors: a scale that f16 cannot represent.
pub fn blocks_of(planes: &Planes, kind: BlockType) -> Result<Vec<u8>, f32> {
    if planes.format.is_dense() {
        return Ok(planes.bytes.concat());
    }
    let mut out = Vec::new();
    for row in 0..planes.rows {
        let sizes = (0..planes.bytes.len()).map(|plane| planes.format.row_bytes(plane, planes.k) as usize);
        let parts: Vec<&[u8]> =
            planes.bytes.iter().zip(sizes).map(|(bytes, size)| &bytes[row * size..][..size]).collect();
        planes.format.write_row(kind, &parts, &mut out)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{FORMATS, Planes};

    #[test]
    fn blocks_hold_the_numbers_of_the_planes() {
        let values: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 40.0) * 0.01).collect();
        for format in FORMATS {
            for k in [256, 128] {
                let kind = block_type(*format, k);
                let exact = format.block_types().written.first() == Some(&kind) && kind != BlockType::F16;
                assert!(exact || k == 128 || kind == BlockType::F16, "{}: {}", format.name(), kind.name());
                if kind.block() == 1 {
                    continue;
                }
                let mut planes = Planes::new(*format, k);
                planes.push_rows(&values, None).expect("fits");
                assert_eq!(block_type(*format, 33).block(), 1, "{}: odd rows are dense", format.name());
                let mut found = vec![0.0; values.len()];
                kind.decode(&blocks_of(&planes, kind).expect("fits"), &mut found);
                // Where the first type does not divide the rows, scales and minima are rounded to f16.
                let bound = if exact { 0.0 } else { 3.0 * 2f32.powi(-11) };
                for (a, b) in found.iter().zip(planes.dequantize()) {
                    assert!((a - b).abs() <= bound, "{} as {}: {a} for {b}", format.name(), kind.name());
                }
            }
        }
    }

    #[test]
    fn a_file_is_complete_or_absent() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("x.gguf");
        let declared = vec![Declared { name: "a".into(), shape: vec![2, 32], kind: BlockType::F32 }];
        let mut writer =
            GgufWriter::create(&target, &[("k".into(), Entry::Number(1))], declared.clone()).expect("a file");
        assert!(writer.write(&[0; 300]).is_err());
        assert!(writer.finish().is_err());
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
        let mut writer = GgufWriter::create(&target, &[], declared.clone()).expect("a file");
        writer.write(&[0; 256]).expect("fits");
        writer.finish().expect("all is there");
        assert!(target.exists() && GgufWriter::create(&target, &[], declared).is_err());
    }
}
