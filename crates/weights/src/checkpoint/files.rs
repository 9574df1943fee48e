//! The files of a checkpoint: which ones hold the weights, and their headers, read and checked.

use super::{METADATA_KEY, METADATA_VERSION, Stored, TensorEntry};
use crate::contents::{Expected, FIRST_BYTES, refuse_other};
use crate::error::WeightsError;
use crate::formats::format_by_name;
use crate::safetensors::{ArrayInfo, Header, MAX_DIM, MAX_DIMS, header_length, parse_header};
use crate::source::{Source, bad_name, is_plain_file_name};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

const MAX_SHARDS: usize = 10_000;
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The files that hold the weights: the first of these kinds that exists.
pub(super) enum Container {
    Safetensors(String),
    /// The text of the index.
    Shards(String),
    Torch(String),
    TorchShards(String),
}

impl Container {
    pub(super) async fn find(source: &dyn Source, stem: &str) -> Result<Self, WeightsError> {
        let single = format!("{stem}.safetensors");
        if source.size(&single).await?.is_some() {
            return Ok(Self::Safetensors(single));
        }
        let index = format!("{single}.index.json");
        if source.size(&index).await?.is_some() {
            return Ok(Self::Shards(index));
        }
        if stem == "model" {
            for (file, of) in [
                ("pytorch_model.bin", Self::Torch as fn(String) -> Self),
                ("pytorch_model.bin.index.json", Self::TorchShards),
            ] {
                if source.size(file).await?.is_some() {
                    return Ok(of(file.to_owned()));
                }
            }
        }
        Err(no_weights(source, &single, stem).await)
    }
}

/// Collects the tensors of a checkpoint's files.
#[derive(Default)]
pub(super) struct Builder {
    pub(super) tensors: Vec<TensorEntry>,
    pub(super) by_name: HashMap<String, usize>,
}

impl Builder {
    /// Adds the arrays of one file, joined into tensors.
    pub(super) fn add(&mut self, file: &str, header: Header) -> Result<(), WeightsError> {
        let shared: Rc<str> = file.into();
        let described = match header.metadata.get(METADATA_KEY) {
            Some(json) => parse_description(file, json)?,
            None => BTreeMap::new(),
        };
        let mut arrays: BTreeMap<String, ArrayInfo> =
            header.arrays.into_iter().map(|array| (array.name.clone(), array)).collect();
        let mut entries = Vec::with_capacity(arrays.len());
        for (name, described) in described {
            entries.push(join_planes(&shared, name, described, &mut arrays)?);
        }
        entries.extend(arrays.into_values().map(|array| TensorEntry {
            name: array.name,
            shape: array.shape,
            stored: Stored::Dense(array.dtype),
            file: shared.clone(),
            offsets: vec![array.offset],
            reader: None,
        }));
        entries.sort_by_key(|entry| entry.offsets[0]);
        for entry in entries {
            self.insert(entry)?;
        }
        Ok(())
    }

    pub(super) fn insert_all(&mut self, entries: Vec<TensorEntry>) -> Result<(), WeightsError> {
        entries.into_iter().try_for_each(|entry| self.insert(entry))
    }

    fn insert(&mut self, entry: TensorEntry) -> Result<(), WeightsError> {
        if let Some(other) = self.by_name.insert(entry.name.clone(), self.tensors.len()) {
            let problem = format!("tensor {:?} is also in {}", entry.name, self.tensors[other].file);
            return Err(WeightsError::malformed(&entry.file, problem));
        }
        self.tensors.push(entry);
        Ok(())
    }
}

#[derive(Deserialize)]
struct Description {
    version: u32,
    tensors: BTreeMap<String, Described>,
}

#[derive(Deserialize)]
struct Described {
    format: String,
    shape: Vec<u64>,
}

/// What formats of version 1 are called today.
const RENAMED: [(&str, &str); 2] = [("q4_k", "q4_1"), ("q5_k", "q5_1")];

fn parse_description(file: &str, json: &str) -> Result<BTreeMap<String, Described>, WeightsError> {
    let mut description: Description = parse_json(file, json)?;
    if !(1..=METADATA_VERSION).contains(&description.version) {
        return Err(WeightsError::Unsupported {
            what: format!("{file}: version {} of the quantized layout", description.version),
            remedy: format!(
                "this program reads versions 1 to {METADATA_VERSION}; quantize again, or update the program"
            ),
        });
    }
    if description.version == 1 {
        for described in description.tensors.values_mut() {
            if let Some((_, now)) = RENAMED.iter().find(|(before, _)| *before == described.format) {
                described.format = (*now).to_owned();
            }
        }
    }
    let old = |(_, described): &(&String, &Described)| description.version < 3 && described.format == "q6_k";
    if let Some((name, _)) = description.tensors.iter().find(old) {
        return Err(WeightsError::Unsupported {
            what: format!("{file}: tensor {name:?}: q6_k as version {} stored it, in 7 bits", description.version),
            remedy: format!("version {METADATA_VERSION} has 6.56 bits; quantize the original model again"),
        });
    }
    Ok(description.tensors)
}

/// Joins the planes of one described tensor, which are removed from `arrays`.
fn join_planes(
    file: &Rc<str>,
    name: String,
    described: Described,
    arrays: &mut BTreeMap<String, ArrayInfo>,
) -> Result<TensorEntry, WeightsError> {
    let bad = |problem: String| WeightsError::malformed(file, format!("tensor {name:?}: {problem}"));
    let format = format_by_name(&described.format).filter(|format| !format.is_dense());
    let Some(format) = format else {
        return Err(WeightsError::Unsupported {
            what: format!("{file}: tensor {name:?}: the quantization format {:?}", described.format),
            remedy: format!("known formats are {}; update the program or quantize again", quantized_names()),
        });
    };
    let dims = described.shape.len();
    if !(1..=MAX_DIMS).contains(&dims) || described.shape.iter().any(|&size| size > MAX_DIM) {
        return Err(bad(format!(
            "expected a shape of 1 to {MAX_DIMS} sizes up to {MAX_DIM}, got {:?}",
            described.shape
        )));
    }
    let shape: Vec<usize> = described.shape.iter().map(|&size| size as usize).collect();
    let k = shape[dims - 1];
    let rows = described.shape[..dims - 1].iter().try_fold(1u64, |rows, &size| rows.checked_mul(size));
    let rows = rows.ok_or_else(|| bad(format!("the shape {shape:?} overflows")))?;
    let mut offsets = Vec::with_capacity(format.planes().len());
    for (number, plane) in format.planes().iter().enumerate() {
        let key = format!("{name}.{}", plane.name);
        let array = arrays.remove(&key).ok_or_else(|| bad(format!("the plane {key:?} is not in the file")))?;
        let per_row = format.row_bytes(number, k) / plane.dtype.size_bytes() as u64;
        let wanted = [rows, per_row];
        if array.dtype != plane.dtype || !array.shape.iter().map(|&size| size as u64).eq(wanted) {
            return Err(bad(format!(
                "expected the plane {key:?} to be {} {wanted:?}, got {} {:?}",
                plane.dtype.name(),
                array.dtype.name(),
                array.shape
            )));
        }
        offsets.push(array.offset);
    }
    Ok(TensorEntry { shape, stored: Stored::Planes(format), file: file.clone(), offsets, name, reader: None })
}

fn quantized_names() -> String {
    let formats = crate::formats::FORMATS.iter().filter(|format| !format.is_dense());
    formats.map(|format| format.name()).collect::<Vec<_>>().join(", ")
}

pub(super) fn parse_json<T: serde::de::DeserializeOwned>(file: &str, text: &str) -> Result<T, WeightsError> {
    crate::json::parse(file, text.as_bytes())
}

/// Reads the first bytes of a file of `size` bytes, and fails if it is clearly something else than expected.
pub(crate) async fn check_contents(
    source: &dyn Source,
    file: &str,
    size: u64,
    expected: Expected,
) -> Result<(), WeightsError> {
    refuse_other(file, &read_exact(source, file, 0, size.min(FIRST_BYTES)).await?, size, expected)
}

/// Reads exactly `length` bytes, or fails.
pub(crate) async fn read_exact(
    source: &dyn Source,
    file: &str,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>, WeightsError> {
    let fail = |reason: String| WeightsError::Source { file: file.to_owned(), place: source.describe(), reason };
    let length = usize::try_from(length).map_err(|_| {
        fail(format!("{length} bytes at once do not fit this machine's address space; read fewer rows"))
    })?;
    if length == 0 {
        return Ok(Vec::new());
    }
    let bytes = source.read(file, offset, length).await?;
    if bytes.len() != length {
        return Err(fail(format!("expected {length} bytes at offset {offset}, got {}; try again", bytes.len())));
    }
    Ok(bytes)
}

pub(super) async fn read_text(source: &dyn Source, file: &str, limit: u64) -> Result<Option<String>, WeightsError> {
    if !is_plain_file_name(file) {
        return Err(bad_name(&source.describe(), file));
    }
    let Some(size) = source.size(file).await? else { return Ok(None) };
    if size > limit {
        return Err(WeightsError::malformed(file, format!("expected at most {limit} bytes of text, got {size}")));
    }
    let bytes = read_exact(source, file, 0, size).await?;
    match String::from_utf8(crate::json::without_mark(&bytes).to_vec()) {
        Ok(text) => Ok(Some(text)),
        Err(error) => {
            refuse_other(file, &bytes, size, Expected::Json)?;
            Err(WeightsError::malformed(file, format!("expected UTF-8 text: {error}")))
        }
    }
}

pub(super) async fn read_header(source: &dyn Source, file: &str) -> Result<Header, WeightsError> {
    let Some(size) = source.size(file).await? else {
        return Err(WeightsError::MissingFile {
            file: file.to_owned(),
            place: source.describe(),
            remedy: "the index names this shard; download it too".to_owned(),
        });
    };
    check_contents(source, file, size, Expected::Safetensors).await?;
    let first = read_exact(source, file, 0, size.min(8)).await?;
    let length = header_length(file, &first, size)?;
    let json = read_exact(source, file, 8, length).await?;
    parse_header(file, &json, size)
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads every shard's header; the index must name exactly the tensors of the shards.
pub(super) async fn read_shards(
    source: &dyn Source,
    index_file: &str,
    builder: &mut Builder,
) -> Result<(), WeightsError> {
    let bad = |problem: String| WeightsError::malformed(index_file, problem);
    let text = read_text(source, index_file, crate::safetensors::MAX_HEADER_BYTES).await?.unwrap_or_default();
    let index: Index = parse_json(index_file, &text)?;
    let mut per_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, file) in &index.weight_map {
        if !is_plain_file_name(file) {
            return Err(bad_name(&source.describe(), file));
        }
        per_file.entry(file).or_default().push(name);
    }
    if per_file.is_empty() {
        return Err(bad("its weight_map names no tensor".to_owned()));
    }
    if per_file.len() > MAX_SHARDS {
        return Err(bad(format!("expected at most {MAX_SHARDS} shards, got {}", per_file.len())));
    }
    for (file, names) in per_file {
        let header = read_header(source, file).await?;
        let held: std::collections::HashSet<&str> = header.arrays.iter().map(|array| array.name.as_str()).collect();
        if let Some(name) = names.iter().find(|name| !held.contains(**name)) {
            return Err(bad(format!("it places tensor {name:?} in {file}, which does not hold it")));
        }
        for array in &header.arrays {
            match index.weight_map.get(&array.name) {
                Some(place) if place == file => {}
                Some(place) => {
                    return Err(bad(format!("tensor {:?} is in {file}, the index says {place}", array.name)));
                }
                None => {
                    return Err(bad(format!("{file} holds tensor {:?}, which the index does not name", array.name)));
                }
            }
        }
        builder.add(file, header)?;
    }
    Ok(())
}

/// Reads every shard of a PyTorch checkpoint; each tensor must be in the file that the index names.
pub(super) async fn read_torch_shards(
    source: &dyn Source,
    index_file: &str,
    builder: &mut Builder,
) -> Result<(), WeightsError> {
    let bad = |problem: String| WeightsError::malformed(index_file, problem);
    let text = read_text(source, index_file, crate::safetensors::MAX_HEADER_BYTES).await?.unwrap_or_default();
    let index: Index = parse_json(index_file, &text)?;
    let files: std::collections::BTreeSet<&String> = index.weight_map.values().collect();
    if files.is_empty() || files.len() > MAX_SHARDS {
        return Err(bad(format!("expected 1 to {MAX_SHARDS} shards, got {}", files.len())));
    }
    for file in files {
        if !is_plain_file_name(file) {
            return Err(bad_name(&source.describe(), file));
        }
        builder.insert_all(crate::torch::read(source, file).await?)?;
    }
    let missing = index.weight_map.iter().find(|(name, file)| {
        builder.by_name.get(*name).is_none_or(|&at| builder.tensors[at].file.as_ref() != file.as_str())
    });
    match missing {
        Some((name, file)) => Err(bad(format!("it places tensor {name:?} in {file}, which does not hold it"))),
        None => Ok(()),
    }
}

/// The error for a directory without safetensors, depending on what else it contains.
async fn no_weights(source: &dyn Source, wanted: &str, stem: &str) -> WeightsError {
    let has = async |file: &str| matches!(source.size(file).await, Ok(Some(_)));
    let place = source.describe();
    if stem == "model" && has(ADAPTER_CONFIG).await {
        let text = read_text(source, ADAPTER_CONFIG, 1 << 20).await.ok().flatten().unwrap_or_default();
        let config: serde_json::Value = parse_json(ADAPTER_CONFIG, &text).unwrap_or_default();
        let base = config.get("base_model_name_or_path").and_then(serde_json::Value::as_str).unwrap_or_default();
        let base = if base.is_empty() { String::new() } else { format!(" ({:.120})", base) };
        return WeightsError::Contents {
            found: "a LoRA adapter, not a model".to_owned(),
            remedy: format!("give its base model{base} with --model, and this directory with --adapter"),
            file: place,
        };
    }
    if stem == "adapter_model" && (has("model.safetensors").await || has("model.safetensors.index.json").await) {
        return WeightsError::Contents {
            found: "a model, not an adapter".to_owned(),
            remedy:
                "give it with --model; an adapter's directory holds adapter_config.json and adapter_model.safetensors"
                    .to_owned(),
            file: place,
        };
    }
    let files = source.list();
    let first = |suffixes: &[&str]| files.iter().find(|file| suffixes.iter().any(|suffix| file.ends_with(suffix)));
    if let Some(file) = first(&[".bin", ".pt", ".pth"]) {
        return unsupported_file(file);
    }
    WeightsError::MissingFile {
        file: wanted.to_owned(),
        place,
        remedy: format!("expected a checkpoint with {wanted} or {wanted}.index.json beside its config"),
    }
}

/// The error for weights in an unsupported container, by file name.
pub(crate) fn unsupported_file(file: &str) -> WeightsError {
    let remedy = "such files can run code when loaded; convert it with transformers: model.save_pretrained(directory, safe_serialization=True)";
    WeightsError::Unsupported { what: format!("{file} (a PyTorch pickle)"), remedy: remedy.to_owned() }
}
