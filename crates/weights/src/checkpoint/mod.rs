//! A checkpoint as a set of named tensors: configuration, headers, and the place of every byte.
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
//! {"version": 3, "tensors": {"model.layers.0.mlp.up_proj.weight": {"format": "q4_0", "shape": [224, 128]}}}
//! ```
//!
//! where `shape` is logical, before `K` is padded. All planes of a tensor are in one file. `config.json` repeats the
//! format under `quantization_config` (`"quant_method": "bayan"`), so that other programs refuse the checkpoint by
//! name. Rejected: guessing from the suffixes, because a dense tensor may be named `….scales`, and the logical `K`
//! would be unknown.

mod files;

pub(crate) use files::check_contents;
pub(crate) use files::read_exact;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use files::unsupported_file;
use files::{Builder, Container, parse_json, read_header, read_shards, read_text, read_torch_shards};

use crate::dtype::Dtype;
use crate::error::WeightsError;
use crate::foreign::{Foreign, RowReader};
use crate::formats::{F16, F32, Format};
use crate::policy::Policy;
use crate::source::Source;
use std::collections::HashMap;
use std::rc::Rc;

/// The key of `__metadata__` that describes quantized tensors.
pub const METADATA_KEY: &str = "bayan";
/// The version of that description. In version 1, the q4_k and q5_k of today did not exist, and q4_1 and q5_1 had their
/// names. Until version 2, q6_k had an f16 scale for each 16 weights; such tensors are refused. All else of the older
/// versions is read.
pub const METADATA_VERSION: u32 = 3;

const MAX_CONFIG_BYTES: u64 = 16 << 20;
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// How a tensor's bytes are stored.
#[derive(Clone, Copy, Debug)]
pub enum Stored {
    /// Row-major numbers of this type.
    Dense(Dtype),
    /// The planes of a quantized format.
    Planes(&'static dyn Format),
    /// A form of another program.
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
    /// Reads the rows of a tensor whose stored bytes need conversion.
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

    /// The format in which the tensor is loaded: dense tensors take the policy's format, by default f32 or f16.
    ///
    /// A tensor in a format of ours keeps it, unless the policy asks for a dense one; one that another program
    /// quantized is quantized again where the policy asks for another format ([`Checkpoint::requantized`] measures the
    /// loss).
    pub fn loaded_format(&self, policy: Option<&Policy>) -> &'static dyn Format {
        let wanted = policy.map(|policy| policy.format_for(&self.name, &self.shape));
        match (self.stored, wanted) {
            (Stored::Planes(_), Some(wanted)) if wanted.is_dense() => wanted,
            (Stored::Planes(format), _) => format,
            (Stored::Foreign(_), Some(wanted)) => wanted,
            (Stored::Foreign(foreign), None) => foreign.native,
            (Stored::Dense(_), Some(wanted)) => wanted,
            (Stored::Dense(Dtype::F32), None) => &F32,
            (Stored::Dense(_), None) => &F16,
        }
    }

    /// The number of rows that take about `bytes` in `format`: a multiple of the format's row alignment, at least one
    /// aligned group.
    pub fn rows_per_chunk(&self, format: &dyn Format, bytes: usize) -> usize {
        let planes = format.planes().len();
        let row: u64 = (0..planes).map(|plane| format.row_bytes(plane, self.k())).sum();
        let alignment = format.rows_alignment(self.k());
        let rows = usize::try_from(bytes as u64 / row.max(1)).unwrap_or(usize::MAX).max(1);
        (rows / alignment).max(1) * alignment
    }
}

/// Matrices of which [`Checkpoint::fingerprint`] reads the first rows.
const FINGERPRINT_MATRICES: usize = 16;

/// An opened checkpoint. Cloning shares the source.
#[derive(Clone)]
pub struct Checkpoint {
    pub(crate) source: Rc<dyn Source>,
    config: serde_json::Value,
    tensors: Vec<TensorEntry>,
    by_name: HashMap<String, usize>,
    is_gguf: bool,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("source", &self.source.describe())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

/// Key of `config.json`: GPT-2's `Conv1D` matrices have been transposed to [outputs, inputs], as quantization needs
/// them.
pub(crate) const TRANSPOSED_KEY: &str = "transposed_conv1d";

/// Whether a checkpoint of this configuration stores matrices as GPT-2's `Conv1D`: [inputs, outputs].
pub fn stores_transposed(config: &serde_json::Value) -> bool {
    let is = |key: &str, value: serde_json::Value| config.get(key) == Some(&value);
    (is("model_type", "jais".into()) || is("model_type", "gpt2".into())) && !is(TRANSPOSED_KEY, true.into())
}

impl Checkpoint {
    /// Opens a model: `config.json` and `model.safetensors` or its shards.
    ///
    /// This includes a GGUF file: the one that the source was opened for, or the only one in a directory without
    /// safetensors.
    pub async fn open(source: Rc<dyn Source>) -> Result<Self, WeightsError> {
        let Some(file) = crate::gguf::find(source.as_ref()).await? else {
            return Self::open_as(source, "config.json", "model").await;
        };
        let opened = crate::gguf::open(source, &file).await?;
        let mut builder = Builder::default();
        builder.insert_all(opened.tensors)?;
        let Builder { tensors, by_name } = builder;
        Ok(Self { source: opened.source, config: opened.config, tensors, by_name, is_gguf: true })
    }

    /// Opens a checkpoint with other file names: `open_as(source, "adapter_config.json", "adapter_model")` reads a PEFT
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
        if stem == "model" {
            crate::packed::check_method(&config_value)?;
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
        let Builder { tensors, by_name } = builder;
        Ok(Self { source, config: config_value, tensors, by_name, is_gguf: false })
    }

    /// The parsed `config.json`: always an object.
    pub fn config(&self) -> &serde_json::Value {
        &self.config
    }

    /// Facts about the files that the user should know of: a guess that could be wrong, a loss.
    pub fn notes(&self) -> Vec<String> {
        self.source.notes()
    }

    /// llama.cpp's name of a tensor, if the checkpoint is a GGUF file and the tensor has one.
    pub fn gguf_name(&self, name: &str) -> Option<String> {
        let model_type = self.config.get("model_type")?.as_str()?;
        crate::gguf::arch::Arch::by_model_type(model_type).filter(|_| self.is_gguf)?.to_gguf(name)
    }

    /// The source of the bytes.
    pub fn source(&self) -> &Rc<dyn Source> {
        &self.source
    }

    /// A short text that other checkpoints do not have: from the configuration, the names, sizes and formats of the
    /// tensors, and the first rows of some matrices. It tells models of the same sizes apart, and does not protect from
    /// files that are made to be mistaken for others.
    ///
    /// # Errors
    /// As [`Checkpoint::read_rows_f32`].
    pub async fn fingerprint(&self) -> Result<String, WeightsError> {
        let mut hash = crc32fast::Hasher::new();
        hash.update(self.config.to_string().as_bytes());
        for tensor in &self.tensors {
            hash.update(format!("{} {:?} {:?}\n", tensor.name, tensor.shape, tensor.stored).as_bytes());
        }
        let matrices: Vec<&TensorEntry> = self.tensors.iter().filter(|tensor| tensor.shape.len() == 2).collect();
        for matrix in matrices.iter().step_by(matrices.len().div_ceil(FINGERPRINT_MATRICES).max(1)) {
            let aligned = matrix.rows_per_chunk(matrix.loaded_format(None), 1);
            let rows = self.read_rows_f32(&matrix.name, 0..aligned.min(matrix.rows())).await?;
            rows.iter().for_each(|value| hash.update(&value.to_le_bytes()));
        }
        Ok(format!("{:08x}", hash.finalize()))
    }

    /// A side file (`tokenizer.json`, `chat_template.jinja`, …) as text; `None` when there is none.
    ///
    /// Errors: not UTF-8, or larger than 256 MiB.
    pub async fn text(&self, file: &str) -> Result<Option<String>, WeightsError> {
        read_text(self.source.as_ref(), file, MAX_TEXT_BYTES).await
    }

    /// A side file (`tokenizer.model`) as bytes; `None` when there is none.
    ///
    /// Errors: larger than 256 MiB.
    pub async fn bytes(&self, file: &str) -> Result<Option<Vec<u8>>, WeightsError> {
        match self.source.size(file).await? {
            Some(size) if size > MAX_TEXT_BYTES => {
                Err(WeightsError::malformed(file, format!("expected at most {MAX_TEXT_BYTES} bytes, got {size}")))
            }
            Some(size) => Ok(Some(read_exact(self.source.as_ref(), file, 0, size).await?)),
            None => Ok(None),
        }
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

    /// Whether a tensor is a matrix stored as [inputs, outputs], as GPT-2's `Conv1D` is; all other matrices are stored
    /// as [outputs, inputs].
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

/// Up to three names with the least edit distance to `name`; names of large checkpoints often differ only in a layer
/// number.
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
