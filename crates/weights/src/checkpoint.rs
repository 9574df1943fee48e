//! A checkpoint as a set of named tensors: configuration, headers, and where every byte lies.
//!
//! # The files
//!
//! `config.json`, then `model.safetensors`, or `model.safetensors.index.json` and the shards it names. All headers are
//! read and checked when opening; weights are read later, by rows (see `read_rows_f32` and `read_planes`).
//!
//! # Quantized tensors in safetensors
//!
//! A tensor `X` of a quantized format is stored as one array per plane, `X.codes`, `X.scales`, …, each of shape `[N,
//! elements per row]`. The file describes itself through the header's `__metadata__` entry `"bayan"`, a JSON string:
//!
//! ```json
//! {"version": 1, "tensors": {"model.layers.0.mlp.up_proj.weight": {"format": "q4_0", "shape": [224, 128]}}}
//! ```
//!
//! where `shape` is logical, before `K` is padded. All planes of a tensor stand in one file. `config.json` repeats the
//! choice under `quantization_config` (`"quant_method": "bayan"`) so that other programs refuse the checkpoint by name.
//! Guessing from the suffixes lost: a dense tensor may be called `….scales`, and the logical `K` would be unknown.

use crate::dtype::Dtype;
use crate::error::WeightsError;
use crate::foreign::{Foreign, RowReader};
use crate::formats::{F16, F32, Format, format_by_name};
use crate::policy::Policy;
use crate::safetensors::{ArrayInfo, Header, MAX_DIM, MAX_DIMS, header_length, parse_header};
use crate::source::{Source, bad_name, is_plain_file_name};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// The key of `__metadata__` that describes quantized tensors.
pub const METADATA_KEY: &str = "bayan";
/// The version of that description.
pub const METADATA_VERSION: u32 = 1;

const MAX_CONFIG_BYTES: u64 = 16 << 20;
const MAX_TEXT_BYTES: u64 = 256 << 20;
const MAX_SHARDS: usize = 10_000;

/// How a tensor's bytes are stored.
#[derive(Clone, Copy, Debug)]
pub enum Stored {
    /// Row-major numbers of this type.
    Dense(Dtype),
    /// The planes of a quantized format.
    Planes(&'static dyn Format),
    /// The form of another program.
    Foreign(Foreign),
}

impl Stored {
    /// `"BF16"`, `"q4_0"`, …
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense(dtype) => dtype.name(),
            Self::Planes(format) => format.name(),
            Self::Foreign(foreign) => foreign.name,
        }
    }
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct TensorEntry {
    /// Its name, as in Hugging Face checkpoints.
    pub name: String,
    /// Logical sizes, outermost first.
    pub shape: Vec<usize>,
    /// What the bytes are.
    pub stored: Stored,
    /// The file they are in.
    pub file: Rc<str>,
    /// Offset in that file of each plane; one for a dense tensor, none for a foreign one.
    pub offsets: Vec<u64>,
    /// Reads the rows where they do not simply stand at the offsets.
    pub(crate) reader: Option<Rc<dyn RowReader>>,
}

impl TensorEntry {
    /// N: all dimensions but the last multiplied; 1 for vectors and scalars.
    pub fn rows(&self) -> usize {
        let rows: u64 = self.shape.split_last().map_or(1, |(_, outer)| outer.iter().map(|&size| size as u64).product());
        usize::try_from(rows).unwrap_or(usize::MAX)
    }

    /// K: the last dimension; 1 for scalars.
    pub fn k(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of weights.
    pub fn count(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Stored bytes of one row in plane `plane`.
    pub fn row_bytes(&self, plane: usize) -> u64 {
        match self.stored {
            Stored::Dense(dtype) => self.k() as u64 * dtype.size_bytes() as u64,
            Stored::Planes(format) => format.row_bytes(plane, self.k()),
            Stored::Foreign(_) => self.size_bytes() / (self.rows() as u64).max(1),
        }
    }

    /// Stored bytes of the whole tensor.
    pub fn size_bytes(&self) -> u64 {
        if let (Stored::Foreign(_), Some(reader)) = (self.stored, &self.reader) {
            return reader.size_bytes();
        }
        (0..self.offsets.len()).map(|plane| self.row_bytes(plane) * self.rows() as u64).sum()
    }

    /// The format it takes when it is loaded: its own, for dense ones what the policy says, by default f32 or f16.
    ///
    /// What is quantized already stays as it is, but where the policy wants plain numbers of what another program
    /// quantized, or fewer bits than 8.
    pub fn loaded_format(&self, policy: Option<&Policy>) -> &'static dyn Format {
        let wanted = policy.map(|policy| policy.format_for(&self.name, &self.shape));
        match (self.stored, wanted) {
            (Stored::Planes(format), _) => format,
            (Stored::Foreign(foreign), Some(wanted)) => {
                let native = foreign.native;
                let smaller = native.bits_per_weight() >= 8.0 && wanted.bits_per_weight() < native.bits_per_weight();
                if wanted.is_dense() || smaller { wanted } else { native }
            }
            (Stored::Foreign(foreign), None) => foreign.native,
            (Stored::Dense(_), Some(wanted)) => wanted,
            (Stored::Dense(Dtype::F32), None) => &F32,
            (Stored::Dense(_), None) => &F16,
        }
    }

    /// How many rows to ask for at a time so that they take about `bytes` in `format`; a multiple of the format's row
    /// alignment, at least one aligned group.
    pub fn rows_per_chunk(&self, format: &dyn Format, bytes: usize) -> usize {
        let planes = format.planes().len();
        let row: u64 = (0..planes).map(|plane| format.row_bytes(plane, self.k())).sum();
        let alignment = format.rows_alignment(self.k());
        let rows = usize::try_from(bytes as u64 / row.max(1)).unwrap_or(usize::MAX).max(1);
        (rows / alignment).max(1) * alignment
    }
}

/// An opened checkpoint. Cloning shares the source.
#[derive(Clone)]
pub struct Checkpoint {
    pub(crate) source: Rc<dyn Source>,
    config: serde_json::Value,
    tensors: Vec<TensorEntry>,
    by_name: HashMap<String, usize>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("source", &self.source.describe())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

/// In `config.json`: GPT-2's `Conv1D` matrices have been turned to [outputs, inputs], as quantization needs them.
pub(crate) const TURNED_KEY: &str = "transposed_conv1d";

/// Whether a checkpoint of this configuration stores matrices as GPT-2's `Conv1D`: [inputs, outputs].
pub fn stores_transposed(config: &serde_json::Value) -> bool {
    let is = |key: &str, value: serde_json::Value| config.get(key) == Some(&value);
    (is("model_type", "jais".into()) || is("model_type", "gpt2".into())) && !is(TURNED_KEY, true.into())
}

impl Checkpoint {
    /// Opens a model: `config.json` and `model.safetensors` or its shards.
    ///
    /// Also a GGUF file: the one that the source was opened for, or the only one of a place without safetensors.
    pub async fn open(source: Rc<dyn Source>) -> Result<Self, WeightsError> {
        let Some(file) = crate::gguf::find(source.as_ref()).await? else {
            return Self::open_as(source, "config.json", "model").await;
        };
        let opened = crate::gguf::open(source, &file).await?;
        let mut builder = Builder::default();
        builder.insert_all(opened.tensors)?;
        Ok(Self { source: opened.source, config: opened.config, tensors: builder.tensors, by_name: builder.by_name })
    }

    /// Opens a checkpoint under other names: `open_as(source, "adapter_config.json", "adapter_model")` reads a PEFT
    /// adapter.
    pub async fn open_as(source: Rc<dyn Source>, config: &str, stem: &str) -> Result<Self, WeightsError> {
        let kind = Container::find(source.as_ref(), stem).await?;
        let Some(text) = read_text(source.as_ref(), config, MAX_CONFIG_BYTES).await? else {
            return Err(WeightsError::MissingFile {
                file: config.to_owned(),
                place: source.describe(),
                remedy: "copy it from where the weights came from; it names the architecture and its sizes".to_owned(),
            });
        };
        let mut config_value: serde_json::Value = parse_json(config, &text)?;
        if !config_value.is_object() {
            return Err(WeightsError::malformed(config, "expected a JSON object"));
        }
        let mut builder = Builder::default();
        match kind {
            Container::Safetensors(file) => builder.add(&file, read_header(source.as_ref(), &file).await?)?,
            Container::Shards(index) => read_shards(source.as_ref(), &index, &mut builder).await?,
            Container::Torch(file) => builder.insert_all(crate::torch::read(source.as_ref(), &file).await?)?,
            Container::TorchShards(index) => read_torch_shards(source.as_ref(), &index, &mut builder).await?,
        }
        if stem == "model" {
            let tensors = crate::packed::join(&config_value, std::mem::take(&mut builder.tensors))?;
            let (text, tensors) = crate::multimodal::text_part(config_value, tensors)?;
            config_value = text;
            builder.by_name.clear();
            builder.insert_all(tensors)?;
        }
        Ok(Self { source, config: config_value, tensors: builder.tensors, by_name: builder.by_name })
    }

    /// The parsed `config.json`: always an object.
    pub fn config(&self) -> &serde_json::Value {
        &self.config
    }

    /// Where the bytes come from.
    pub fn source(&self) -> &Rc<dyn Source> {
        &self.source
    }

    /// A side file (`tokenizer.json`, `chat_template.jinja`, …) as text; `None` when there is none.
    ///
    /// Errors: not UTF-8, or larger than 256 MiB.
    pub async fn text(&self, file: &str) -> Result<Option<String>, WeightsError> {
        read_text(self.source.as_ref(), file, MAX_TEXT_BYTES).await
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// The tensor called `name`, or an error that lists the nearest names.
    pub fn require(&self, name: &str) -> Result<&TensorEntry, WeightsError> {
        self.tensor(name).ok_or_else(|| WeightsError::MissingTensor {
            name: name.to_owned(),
            place: self.source.describe(),
            near: near_names(name, &self.tensors),
        })
    }

    /// Whether a tensor is a matrix stored as [inputs, outputs], as GPT-2's `Conv1D` has them: rows of the others are
    /// outputs.
    pub fn is_transposed(&self, entry: &TensorEntry) -> bool {
        let modules = [".c_attn.weight", ".c_proj.weight", ".c_fc.weight", ".c_fc2.weight"];
        entry.shape.len() == 2
            && stores_transposed(&self.config)
            && modules.iter().any(|module| entry.name.ends_with(module))
    }

    /// All tensors, in the order of files and bytes.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// All names, in the order of files and bytes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// Stored bytes of all tensors.
    pub fn size_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorEntry::size_bytes).sum()
    }
}

/// Which files hold the weights; the first of these kinds that is there.
enum Container {
    Safetensors(String),
    /// The index.
    Shards(String),
    Torch(String),
    TorchShards(String),
}

impl Container {
    async fn find(source: &dyn Source, stem: &str) -> Result<Self, WeightsError> {
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
        Err(no_weights(source, &single))
    }
}

/// Collects tensors over the files of a checkpoint.
#[derive(Default)]
struct Builder {
    tensors: Vec<TensorEntry>,
    by_name: HashMap<String, usize>,
}

impl Builder {
    /// Adds one file's arrays, joined into tensors.
    fn add(&mut self, file: &str, header: Header) -> Result<(), WeightsError> {
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

    fn insert_all(&mut self, entries: Vec<TensorEntry>) -> Result<(), WeightsError> {
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

fn parse_description(file: &str, json: &str) -> Result<BTreeMap<String, Described>, WeightsError> {
    let description: Description = parse_json(file, json)?;
    if description.version != METADATA_VERSION {
        return Err(WeightsError::Unsupported {
            what: format!("{file}: version {} of the quantized layout", description.version),
            remedy: format!("this program reads version {METADATA_VERSION}; quantize again, or update the program"),
        });
    }
    Ok(description.tensors)
}

/// The planes of one described tensor, taken out of `arrays`.
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

fn parse_json<T: serde::de::DeserializeOwned>(file: &str, text: &str) -> Result<T, WeightsError> {
    serde_json::from_str(text).map_err(|error| WeightsError::malformed(file, format!("not the expected JSON: {error}")))
}

/// Exactly `length` bytes, whatever the source does.
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

async fn read_text(source: &dyn Source, file: &str, limit: u64) -> Result<Option<String>, WeightsError> {
    if !is_plain_file_name(file) {
        return Err(bad_name(&source.describe(), file));
    }
    let Some(size) = source.size(file).await? else { return Ok(None) };
    if size > limit {
        return Err(WeightsError::malformed(file, format!("expected at most {limit} bytes of text, got {size}")));
    }
    let bytes = read_exact(source, file, 0, size).await?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(error) => Err(WeightsError::malformed(file, format!("expected UTF-8 text: {error}"))),
    }
}

async fn read_header(source: &dyn Source, file: &str) -> Result<Header, WeightsError> {
    let Some(size) = source.size(file).await? else {
        return Err(WeightsError::MissingFile {
            file: file.to_owned(),
            place: source.describe(),
            remedy: "the index names this shard; download it too".to_owned(),
        });
    };
    let first = read_exact(source, file, 0, size.min(8)).await?;
    let length = header_length(file, &first, size)?;
    let json = read_exact(source, file, 8, length).await?;
    parse_header(file, &json, size)
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Every shard's header, held against the index in both directions.
async fn read_shards(source: &dyn Source, index_file: &str, builder: &mut Builder) -> Result<(), WeightsError> {
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

/// Every shard of a PyTorch checkpoint; each tensor must be where the index says.
async fn read_torch_shards(source: &dyn Source, index_file: &str, builder: &mut Builder) -> Result<(), WeightsError> {
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

/// The error for a place without safetensors, according to what is there instead.
fn no_weights(source: &dyn Source, wanted: &str) -> WeightsError {
    let files = source.list();
    let first = |suffixes: &[&str]| files.iter().find(|file| suffixes.iter().any(|suffix| file.ends_with(suffix)));
    if let Some(file) = first(&[".bin", ".pt", ".pth"]) {
        return unsupported_file(file);
    }
    WeightsError::MissingFile {
        file: wanted.to_owned(),
        place: source.describe(),
        remedy: format!("expected a checkpoint with {wanted} or {wanted}.index.json beside its config"),
    }
}

/// The error for weights in a container that is not read, by file name.
pub(crate) fn unsupported_file(file: &str) -> WeightsError {
    let remedy = "such files can run code when loaded; convert it with transformers: model.save_pretrained(directory, safe_serialization=True)";
    WeightsError::Unsupported { what: format!("{file} (a PyTorch pickle)"), remedy: remedy.to_owned() }
}

/// Up to three names with the least edit distance to `name`; common names in big checkpoints differ in a layer number.
fn near_names(name: &str, tensors: &[TensorEntry]) -> Vec<String> {
    let mut scored: Vec<(usize, &str)> =
        tensors.iter().take(20_000).map(|t| (distance(name, &t.name), t.name.as_str())).collect();
    scored.sort_by_key(|(score, _)| *score);
    scored.into_iter().take(3).map(|(_, near)| near.to_owned()).collect()
}

/// Levenshtein distance over the first 200 bytes.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (&a.as_bytes()[..a.len().min(200)], &b.as_bytes()[..b.len().min(200)]);
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
