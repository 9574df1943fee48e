//! The safetensors container: reading and writing its header.
//!
//! Eight bytes of header length, a JSON header, then the arrays back to back. A header is accepted only if its arrays
//! cover the rest of the file exactly: no gap, no overlap, nothing beyond the end, every length equal to element size
//! times shape, every name once. The header is parsed here because the `safetensors` crate needs the whole file as one
//! slice, which neither a browser nor a 70B checkpoint allows; tests compare the results with that crate.

use crate::dtype::Dtype;
use crate::error::WeightsError;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// Larger headers are refused, as the format specifies.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most dimensions; no tensor of a language model has more.
pub const MAX_DIMS: usize = 8;
/// Largest single dimension: the product of two fits 64 bits, and one dimension a 32-bit `usize`.
pub const MAX_DIM: u64 = i32::MAX as u64;

/// One array of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayInfo {
    /// The name in the header.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Offset of the first byte, from the start of the file.
    pub offset: u64,
    /// Bytes: element size times shape.
    pub length: u64,
}

/// A checked header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Arrays in the order of their bytes.
    pub arrays: Vec<ArrayInfo>,
    /// The `__metadata__` strings.
    pub metadata: BTreeMap<String, String>,
}

/// The length of the JSON header, from the first eight bytes of a file of `file_bytes` bytes.
pub fn header_length(file: &str, first: &[u8], file_bytes: u64) -> Result<u64, WeightsError> {
    let Some(first) = first.first_chunk::<8>() else {
        return Err(WeightsError::malformed(
            file,
            format!("expected at least 8 bytes, got {file_bytes}: not a safetensors file"),
        ));
    };
    let length = u64::from_le_bytes(*first);
    if length > MAX_HEADER_BYTES {
        return Err(WeightsError::malformed(
            file,
            format!("expected a header of at most {MAX_HEADER_BYTES} bytes, got a length of {length}"),
        ));
    }
    if length < 2 || length > file_bytes.saturating_sub(8) {
        return Err(WeightsError::malformed(
            file,
            format!("the header has a declared length of {length} bytes, but the file has {file_bytes} bytes"),
        ));
    }
    Ok(length)
}

/// Validates a JSON header for a file of this size.
///
/// Errors: [`WeightsError::Malformed`] with the array and the violated rule, [`WeightsError::Unsupported`] for an
/// unknown element type.
pub fn parse_header(file: &str, json: &[u8], file_bytes: u64) -> Result<Header, WeightsError> {
    let bad = |problem: String| WeightsError::malformed(file, problem);
    if json.first() != Some(&b'{') {
        return Err(bad("the header does not begin with '{'".to_owned()));
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let raw = reader.deserialize_map(HeaderVisitor).and_then(|raw| reader.end().map(|()| raw));
    let raw = raw.map_err(|error| bad(format!("the header is not the expected JSON: {error}")))?;
    let data_start = 8 + json.len() as u64;
    let data_bytes = file_bytes
        .checked_sub(data_start)
        .ok_or_else(|| bad(format!("the header ends at byte {data_start}, the file at byte {file_bytes}")))?;

    let mut arrays = Vec::with_capacity(raw.arrays.len());
    for (name, array) in raw.arrays {
        arrays.push(check_array(file, name, array, data_start)?);
    }
    arrays.sort_by_key(|array: &ArrayInfo| (array.offset, array.length));
    let mut position = data_start;
    for array in &arrays {
        if array.offset != position {
            return Err(bad(format!(
                "tensor {:?}: expected its bytes to begin at {}, where the one before ends, got {} (a gap or an overlap)",
                array.name,
                position - data_start,
                array.offset - data_start
            )));
        }
        position = array
            .offset
            .checked_add(array.length)
            .ok_or_else(|| bad(format!("tensor {:?}: offset overflows", array.name)))?;
    }
    if position - data_start != data_bytes {
        return Err(bad(format!(
            "the tensors take {} bytes, but {data_bytes} bytes follow the header (truncated or appended to)",
            position - data_start
        )));
    }
    Ok(Header { arrays, metadata: raw.metadata })
}

fn check_array(file: &str, name: String, raw: RawArray, data_start: u64) -> Result<ArrayInfo, WeightsError> {
    let bad = |problem: String| WeightsError::malformed(file, format!("tensor {name:?}: {problem}"));
    let Some(dtype) = Dtype::from_name(&raw.dtype) else {
        return Err(WeightsError::Unsupported {
            what: format!("tensor {name:?} in {file}: element type {:?}", raw.dtype),
            remedy: format!("convert the checkpoint to BF16; known types are {}", Dtype::known_names()),
        });
    };
    if raw.shape.len() > MAX_DIMS {
        return Err(bad(format!("expected at most {MAX_DIMS} dimensions, got {}", raw.shape.len())));
    }
    let mut bytes = dtype.size_bytes() as u64;
    let mut shape = Vec::with_capacity(raw.shape.len());
    for &size in &raw.shape {
        if size > MAX_DIM {
            return Err(bad(format!("expected sizes up to {MAX_DIM}, got {size}")));
        }
        bytes = bytes.checked_mul(size).ok_or_else(|| bad(format!("the shape {:?} overflows", raw.shape)))?;
        shape.push(size as usize);
    }
    let [begin, end] = raw.data_offsets;
    let length = end.checked_sub(begin).ok_or_else(|| bad(format!("its bytes end at {end}, before {begin}")))?;
    if length != bytes {
        return Err(bad(format!(
            "{} of shape {shape:?} takes {bytes} bytes, its offsets {begin}..{end} hold {length}",
            dtype.name()
        )));
    }
    let offset = begin.checked_add(data_start).ok_or_else(|| bad(format!("offset {begin} overflows")))?;
    Ok(ArrayInfo { dtype, shape, offset, length, name })
}

#[derive(serde::Deserialize)]
struct RawArray {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(Default)]
struct RawHeader {
    arrays: Vec<(String, RawArray)>,
    metadata: BTreeMap<String, String>,
}

/// Visits the map entry by entry, because in a map type a repeated name would replace the first.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensor names to dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("the name {name:?} occurs twice")));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value()?;
            } else {
                header.arrays.push((name, map.next_value()?));
            }
        }
        Ok(header)
    }
}

/// Encodes the bytes before the arrays: length and JSON header, padded with spaces to a multiple of 8.
///
/// `arrays` are `(name, dtype, shape, bytes)` in file order; the caller writes them back to back after the returned
/// bytes.
pub fn encode_header(arrays: &[(&str, Dtype, &[usize], u64)], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut map = serde_json::Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    let mut position = 0u64;
    for (name, dtype, shape, bytes) in arrays {
        let end = position + bytes;
        map.insert(
            (*name).to_owned(),
            serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [position, end]}),
        );
        position = end;
    }
    let mut json = serde_json::Value::Object(map).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(&json);
    out
}
