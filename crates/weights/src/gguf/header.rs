//! The header of a GGUF file: metadata and the list of tensors, versions 2 and 3, little endian.
//!
//! The header is read through a window of 1 MiB, so that the cost depends only on the size of the header. Every length
//! is compared with the remaining bytes before anything is allocated; nested arrays, which no program writes, are
//! refused.

use crate::checkpoint::{check_contents, read_exact};
use crate::contents::Expected;
use crate::error::WeightsError;
use crate::gguf::blocks::BlockType;
use crate::safetensors::{MAX_DIM, MAX_DIMS};
use crate::source::Source;
use std::collections::{BTreeMap, HashSet};

const WINDOW_BYTES: u64 = 1 << 20;
/// A longer key or tensor name means a damaged file.
const MAX_NAME_BYTES: u64 = 1 << 16;
/// Most bytes of all metadata; the largest vocabularies take about ten MB.
const MAX_HEADER_BYTES: u64 = 512 << 20;
const MAX_ALIGNMENT: u64 = 1 << 16;

/// A metadata value. Integers of all widths are one variant.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer.
    Integer(i64),
    /// A float of either width.
    Float(f64),
    /// A boolean.
    Flag(bool),
    /// A text.
    Text(String),
    /// A list of integers.
    Integers(Vec<i64>),
    /// A list of floats.
    Floats(Vec<f64>),
    /// A list of booleans.
    Flags(Vec<bool>),
    /// A list of texts.
    Texts(Vec<String>),
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// llama.cpp's name.
    pub name: String,
    /// Sizes, outermost first (the file has them innermost first).
    pub shape: Vec<usize>,
    /// The type of its blocks.
    pub kind: BlockType,
    /// Offset of its first byte from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub size_bytes: u64,
}

/// The contents of a header.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Keys and values.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
}

impl Header {
    /// The value of a text key.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The value of a key that is a non-negative integer.
    pub fn integer(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key) {
            Some(Value::Integer(value)) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The value of a numeric key.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key) {
            Some(Value::Float(value)) => Some(*value),
            Some(Value::Integer(value)) => Some(*value as f64),
            _ => None,
        }
    }

    /// The value of a boolean key.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key) {
            Some(Value::Flag(value)) => Some(*value),
            _ => None,
        }
    }

    /// The value of a key that is a list of texts.
    pub fn texts(&self, key: &str) -> Option<&[String]> {
        match self.metadata.get(key) {
            Some(Value::Texts(values)) => Some(values),
            _ => None,
        }
    }

    /// The value of a key that is a list of integers.
    pub fn integers(&self, key: &str) -> Option<&[i64]> {
        match self.metadata.get(key) {
            Some(Value::Integers(values)) => Some(values),
            _ => None,
        }
    }

    /// The value of a key that is a list of floats.
    pub fn floats(&self, key: &str) -> Option<&[f64]> {
        match self.metadata.get(key) {
            Some(Value::Floats(values)) => Some(values),
            _ => None,
        }
    }
}

/// Reads and validates the header of `file`.
pub async fn read_header(source: &dyn Source, file: &str) -> Result<Header, WeightsError> {
    let size = source.size(file).await?.ok_or_else(|| WeightsError::MissingFile {
        file: file.to_owned(),
        place: source.describe(),
        remedy: "it belongs to this model; copy it to where the first part is".to_owned(),
    })?;
    check_contents(source, file, size, Expected::Gguf).await?;
    let mut cursor = Cursor { source, file, size, position: 0, window: Vec::new(), window_start: 0 };
    if cursor.take(4).await? != b"GGUF" {
        return Err(cursor.bad("expected it to begin with \"GGUF\""));
    }
    let version = cursor.u32().await?;
    match version {
        2 | 3 => {}
        1 => return Err(unsupported(file, "GGUF version 1", "convert the model again with a current llama.cpp")),
        _ if version.swap_bytes() <= 3 => {
            return Err(unsupported(file, "a big-endian GGUF", "convert the model again on a little-endian machine"));
        }
        _ => {
            return Err(unsupported(
                file,
                &format!("GGUF version {version}"),
                "versions 2 and 3 are read; update this program",
            ));
        }
    }
    let (tensors, keys) = (cursor.u64().await?, cursor.u64().await?);
    cursor.check_count(tensors, 24, "tensors")?;
    cursor.check_count(keys, 13, "metadata keys")?;
    let mut header = Header::default();
    for _ in 0..keys {
        let key = cursor.text(MAX_NAME_BYTES, "a metadata key").await?;
        let kind = cursor.u32().await?;
        let value = cursor.value(kind).await?;
        if header.metadata.insert(key.clone(), value).is_some() {
            return Err(cursor.bad(format!("the metadata key {key:?} occurs twice")));
        }
    }
    let alignment = match header.metadata.get("general.alignment") {
        None => 32,
        Some(Value::Integer(n)) if (1..=MAX_ALIGNMENT as i64).contains(n) && (*n as u64).is_power_of_two() => *n as u64,
        Some(other) => {
            return Err(
                cursor.bad(format!("general.alignment: expected a power of two up to {MAX_ALIGNMENT}, got {other:?}"))
            );
        }
    };
    let mut names = HashSet::new();
    for _ in 0..tensors {
        let info = cursor.tensor().await?;
        if !names.insert(info.name.clone()) {
            return Err(cursor.bad(format!("the tensor {:?} occurs twice", info.name)));
        }
        header.tensors.push(info);
    }
    place(&cursor, &mut header, alignment)?;
    Ok(header)
}

/// Converts offsets in the data to offsets in the file, and checks that tensors do not overlap and lie inside the file.
fn place(cursor: &Cursor<'_>, header: &mut Header, alignment: u64) -> Result<(), WeightsError> {
    let data = cursor.position.checked_next_multiple_of(alignment).ok_or_else(|| cursor.bad("the header overflows"))?;
    let mut position = data;
    header.tensors.sort_by_key(|info| (info.offset, info.size_bytes));
    for info in &mut header.tensors {
        let offset = info.offset.checked_add(data).filter(|offset| offset.is_multiple_of(alignment));
        let end = offset.and_then(|offset| offset.checked_add(info.size_bytes));
        let (Some(offset), Some(end)) = (offset, end) else {
            return Err(cursor.bad(format!(
                "tensor {:?}: offset {} is not a multiple of {alignment}, or overflows",
                info.name, info.offset
            )));
        };
        if end > cursor.size {
            let problem = format!(
                "tensor {:?} takes {} bytes from offset {offset}, but the file has {} bytes (truncated?)",
                info.name, info.size_bytes, cursor.size
            );
            return Err(cursor.bad(problem));
        }
        if offset < position {
            return Err(cursor.bad(format!("tensor {:?} overlaps the one before it", info.name)));
        }
        (info.offset, position) = (offset, end);
    }
    Ok(())
}

fn unsupported(file: &str, what: &str, remedy: &str) -> WeightsError {
    WeightsError::Unsupported { what: format!("{file} ({what})"), remedy: remedy.to_owned() }
}

/// A forward reader with a window.
struct Cursor<'a> {
    source: &'a dyn Source,
    file: &'a str,
    size: u64,
    position: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl Cursor<'_> {
    fn bad(&self, problem: impl Into<String>) -> WeightsError {
        WeightsError::malformed(self.file, problem)
    }

    fn left(&self) -> u64 {
        self.size - self.position
    }

    /// Checks that `count` items of at least `bytes` each fit into the remaining file.
    fn check_count(&self, count: u64, bytes: u64, what: &str) -> Result<(), WeightsError> {
        if count <= self.left() / bytes {
            return Ok(());
        }
        Err(self.bad(format!("{count} {what} are declared, but only {} bytes are left", self.left())))
    }

    async fn take(&mut self, length: u64) -> Result<Vec<u8>, WeightsError> {
        if length > self.left() {
            return Err(self.bad(format!(
                "{length} bytes are declared at offset {}, but the file has {} bytes",
                self.position, self.size
            )));
        }
        if self.position + length > MAX_HEADER_BYTES {
            return Err(self.bad(format!("expected a header of at most {MAX_HEADER_BYTES} bytes")));
        }
        let inside =
            |start: u64, window: &[u8]| self.position >= start && self.position + length <= start + window.len() as u64;
        if !inside(self.window_start, &self.window) {
            let want = length.max(WINDOW_BYTES).min(self.left());
            self.window = read_exact(self.source, self.file, self.position, want).await?;
            self.window_start = self.position;
        }
        let start = (self.position - self.window_start) as usize;
        self.position += length;
        Ok(self.window[start..start + length as usize].to_vec())
    }

    async fn number<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let bytes = self.take(N as u64).await?;
        let mut array = [0; N];
        array.copy_from_slice(&bytes);
        Ok(array)
    }

    async fn u32(&mut self) -> Result<u32, WeightsError> {
        Ok(u32::from_le_bytes(self.number().await?))
    }

    async fn u64(&mut self) -> Result<u64, WeightsError> {
        Ok(u64::from_le_bytes(self.number().await?))
    }

    async fn text(&mut self, limit: u64, what: &str) -> Result<String, WeightsError> {
        let length = self.u64().await?;
        if length > limit {
            return Err(self.bad(format!("{what} has a declared length of {length} bytes, expected at most {limit}")));
        }
        let bytes = self.take(length).await?;
        String::from_utf8(bytes).map_err(|error| self.bad(format!("{what} is not UTF-8: {error}")))
    }

    async fn value(&mut self, kind: u32) -> Result<Value, WeightsError> {
        if kind == 9 {
            let kind = self.u32().await?;
            let count = self.u64().await?;
            return self.array(kind, count).await;
        }
        if kind == 8 {
            let limit = self.left();
            return Ok(Value::Text(self.text(limit, "a metadata text").await?));
        }
        let bytes = self.take(width(kind).ok_or_else(|| self.bad(format!("unknown metadata type {kind}")))?).await?;
        Ok(scalar(kind, &bytes))
    }

    async fn array(&mut self, kind: u32, count: u64) -> Result<Value, WeightsError> {
        if kind == 8 {
            self.check_count(count, 8, "texts")?;
            let mut texts = Vec::new();
            for _ in 0..count {
                let limit = self.left();
                texts.push(self.text(limit, "a metadata text").await?);
            }
            return Ok(Value::Texts(texts));
        }
        let width = width(kind)
            .ok_or_else(|| self.bad(format!("an array of metadata type {kind}: expected numbers, flags or texts")))?;
        self.check_count(count, width, "numbers")?;
        let bytes = self.take(count * width).await?;
        let values = bytes.chunks_exact(width as usize).map(|bytes| scalar(kind, bytes));
        Ok(match kind {
            6 | 12 => Value::Floats(values.map(|v| if let Value::Float(v) = v { v } else { 0.0 }).collect()),
            7 => Value::Flags(values.map(|v| v == Value::Flag(true)).collect()),
            _ => Value::Integers(values.map(|v| if let Value::Integer(v) = v { v } else { 0 }).collect()),
        })
    }

    async fn tensor(&mut self) -> Result<TensorInfo, WeightsError> {
        let name = self.text(MAX_NAME_BYTES, "a tensor's name").await?;
        let dims = self.u32().await?;
        if dims as usize > MAX_DIMS {
            return Err(self.bad(format!("tensor {name:?}: expected at most {MAX_DIMS} dimensions, got {dims}")));
        }
        let mut shape = Vec::new();
        let mut count = 1u64;
        for _ in 0..dims {
            let size = self.u64().await?;
            if size > MAX_DIM {
                return Err(self.bad(format!("tensor {name:?}: expected sizes up to {MAX_DIM}, got {size}")));
            }
            count = count.checked_mul(size).ok_or_else(|| self.bad(format!("tensor {name:?}: its shape overflows")))?;
            shape.push(size as usize);
        }
        shape.reverse();
        let id = self.u32().await?;
        let kind = BlockType::from_id(id).map_err(|known| {
            let remedy = format!(
                "supported are {known}; quantize the model to one of these with llama.cpp, or take another file of it"
            );
            unsupported(self.file, &format!("tensor {name:?}: block type {id}, {}", BlockType::name_of(id)), &remedy)
        })?;
        let k = shape.last().copied().unwrap_or(1);
        if !k.is_multiple_of(kind.block()) {
            return Err(self.bad(format!(
                "tensor {name:?}: expected rows of whole {} blocks of {}, got rows of {k}",
                kind.name(),
                kind.block()
            )));
        }
        let size_bytes = (count / kind.block() as u64).checked_mul(kind.bytes() as u64);
        let size_bytes = size_bytes.ok_or_else(|| self.bad(format!("tensor {name:?}: its size overflows")))?;
        let offset = self.u64().await?;
        Ok(TensorInfo { name, shape, kind, offset, size_bytes })
    }
}

/// Bytes of a scalar metadata type.
fn width(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

fn scalar(kind: u32, bytes: &[u8]) -> Value {
    let mut wide = [0u8; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    match kind {
        6 => Value::Float(f64::from(f32::from_bits(unsigned as u32))),
        12 => Value::Float(f64::from_bits(unsigned)),
        7 => Value::Flag(unsigned != 0),
        1 => Value::Integer(i64::from(unsigned as u8 as i8)),
        3 => Value::Integer(i64::from(unsigned as u16 as i16)),
        5 => Value::Integer(i64::from(unsigned as u32 as i32)),
        _ => Value::Integer(unsigned as i64),
    }
}
