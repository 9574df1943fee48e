//! Importance: the mean squared activation of each input of a matrix over a text, by tensor name, in a file.
//!
//! The file is a safetensors file with one vector \[K\] for each matrix, which every tool can read; llama.cpp's form
//! (GGUF) is read too. A file that does not belong to the checkpoint is refused as a whole: applying another model's
//! importance would be worse than applying none, and nobody would notice.

use crate::checkpoint::{Checkpoint, TensorEntry, read_exact};
use crate::dtype::Dtype;
use crate::error::WeightsError;
use crate::gguf::arch::Arch;
use crate::gguf::blocks::BlockType;
use crate::gguf::header::read_header;
use crate::policy::Policy;
use crate::safetensors::{encode_header, header_length, parse_header};
use crate::source::Source;
use std::collections::BTreeMap;

const KIND_KEY: &str = "bayan";
const KIND: &str = "importance";
const TOKENS_KEY: &str = "tokens";
/// A larger file is something else: one vector for each matrix takes some MB.
const LARGEST_BYTES: u64 = 1 << 30;

/// The importance of the inputs of matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    tokens: u64,
    columns: BTreeMap<String, Vec<f32>>,
}

/// The matrices of a checkpoint that an importance file covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// Matrices that are quantized with importance.
    pub covered: usize,
    /// Matrices that are quantized without, because the file does not contain them.
    pub without: Vec<String>,
}

impl Importance {
    /// Makes an importance of mean squares \[K\] by tensor name, measured over this many tokens.
    ///
    /// Errors: a value is negative or not finite.
    pub fn new(tokens: u64, columns: BTreeMap<String, Vec<f32>>) -> Result<Self, WeightsError> {
        for (tensor, values) in &columns {
            if let Some(value) = values.iter().find(|value| !value.is_finite() || **value < 0.0) {
                return Err(WeightsError::Request {
                    tensor: tensor.clone(),
                    expected: "mean squared activations that are finite and not negative".to_owned(),
                    got: format!("{value}; the model's activations overflow on this text"),
                });
            }
        }
        Ok(Self { tokens, columns })
    }

    /// Number of tokens of the text; 0 where the file does not say.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The values \[K\] by tensor name.
    pub fn columns(&self) -> &BTreeMap<String, Vec<f32>> {
        &self.columns
    }

    /// Encodes it as a safetensors file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let shapes: Vec<[usize; 1]> = self.columns.values().map(|values| [values.len()]).collect();
        let arrays: Vec<(&str, Dtype, &[usize], u64)> = self
            .columns
            .keys()
            .zip(&shapes)
            .map(|(name, shape)| (name.as_str(), Dtype::F32, shape.as_slice(), 4 * shape[0] as u64))
            .collect();
        let metadata =
            BTreeMap::from([(KIND_KEY.to_owned(), KIND.to_owned()), (TOKENS_KEY.to_owned(), self.tokens.to_string())]);
        let mut out = encode_header(&arrays, &metadata);
        out.extend(self.columns.values().flatten().flat_map(|value| value.to_le_bytes()));
        out
    }

    /// Reads `file` of `source`: written by [`to_bytes`](Self::to_bytes), or in llama.cpp's GGUF form, whose names are
    /// translated for `model_type`.
    ///
    /// Errors: the file is missing, damaged, or of another kind.
    pub async fn read(source: &dyn Source, file: &str, model_type: &str) -> Result<Self, WeightsError> {
        let missing = || WeightsError::MissingFile {
            file: file.to_owned(),
            place: source.describe(),
            remedy: "make one with `bayan imatrix`".to_owned(),
        };
        let size = source.size(file).await?.ok_or_else(missing)?;
        if size > LARGEST_BYTES {
            return Err(WeightsError::malformed(
                file,
                format!("expected the importance of matrices, at most {LARGEST_BYTES} bytes, got {size}"),
            ));
        }
        let first = read_exact(source, file, 0, size.min(8)).await?;
        if first.starts_with(b"GGUF") {
            read_gguf(source, file, model_type).await
        } else {
            read_own(source, file, &first, size).await
        }
    }

    /// Adds it to a policy for `checkpoint`.
    ///
    /// Errors: the checkpoint does not have a tensor of the file, or has another number of columns: the file belongs to
    /// another model.
    pub fn apply(self, checkpoint: &Checkpoint, policy: &mut Policy) -> Result<Coverage, WeightsError> {
        for (name, values) in &self.columns {
            let entry = checkpoint.require(name)?;
            let inputs = if checkpoint.is_transposed(entry) { entry.rows() } else { entry.k() };
            if values.len() != inputs {
                return Err(WeightsError::Request {
                    tensor: name.clone(),
                    expected: format!("an importance of its {inputs} inputs"),
                    got: format!("{} values; the file was made with another model", values.len()),
                });
            }
        }
        let quantized =
            |entry: &&TensorEntry| entry.shape.len() == 2 && !policy.format_for(&entry.name, &entry.shape).is_dense();
        let quantized: Vec<&TensorEntry> = checkpoint.tensors().iter().filter(quantized).collect();
        let (with, without): (Vec<_>, Vec<_>) =
            quantized.into_iter().partition(|entry| self.columns.contains_key(&entry.name));
        let coverage =
            Coverage { covered: with.len(), without: without.into_iter().map(|entry| entry.name.clone()).collect() };
        policy.importance = self.columns;
        Ok(coverage)
    }
}

async fn read_own(source: &dyn Source, file: &str, first: &[u8], size: u64) -> Result<Importance, WeightsError> {
    let length = header_length(file, first, size)?;
    let header = parse_header(file, &read_exact(source, file, 8, length).await?, size)?;
    if header.metadata.get(KIND_KEY).map(String::as_str) != Some(KIND) {
        return Err(WeightsError::malformed(file, "expected a file that `bayan imatrix` wrote, got other tensors"));
    }
    let tokens = header.metadata.get(TOKENS_KEY).and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut columns = BTreeMap::new();
    for array in &header.arrays {
        if array.dtype != Dtype::F32 || array.shape.len() != 1 {
            return Err(WeightsError::malformed(
                file,
                format!(
                    "tensor {:?}: expected one F32 vector, got {} {:?}",
                    array.name,
                    array.dtype.name(),
                    array.shape
                ),
            ));
        }
        let bytes = read_exact(source, file, array.offset, array.length).await?;
        columns.insert(array.name.clone(), floats(&bytes));
    }
    Importance::new(tokens, columns)
}

/// Reads llama.cpp's form: for each matrix the sums of squares `NAME.in_sum2` and the numbers of rows `NAME.counts`.
async fn read_gguf(source: &dyn Source, file: &str, model_type: &str) -> Result<Importance, WeightsError> {
    let header = read_header(source, file).await?;
    if header.text("general.type") != Some("imatrix") {
        return Err(WeightsError::malformed(
            file,
            "expected a GGUF file of the type \"imatrix\", as llama-imatrix writes it, got another",
        ));
    }
    let Some(arch) = Arch::by_model_type(model_type) else {
        return Err(WeightsError::Unsupported {
            what: format!("{file}: llama.cpp's names for a {model_type} model"),
            remedy: "make the file with `bayan imatrix`".to_owned(),
        });
    };
    let mut columns = BTreeMap::new();
    let mut tokens = 0;
    for sums in &header.tensors {
        let Some(name) = sums.name.strip_suffix(".in_sum2") else { continue };
        let bad = |problem: &str| WeightsError::malformed(file, format!("{name:?}: {problem}"));
        let counts = header.tensors.iter().find(|info| info.name.strip_suffix(".counts") == Some(name));
        let counts = counts.ok_or_else(|| bad("sums without counts"))?;
        let one = counts.shape.iter().product::<usize>() == 1
            && sums.shape[..sums.shape.len().saturating_sub(1)].iter().all(|&n| n == 1);
        if sums.kind != BlockType::F32 || counts.kind != BlockType::F32 || !one {
            return Err(bad("expected F32 sums [K] and one count"));
        }
        let full = arch
            .to_hugging_face(name)
            .ok_or_else(|| bad("no tensor of this architecture has this name in llama.cpp"))?;
        let count = floats(&read_exact(source, file, counts.offset, counts.size_bytes).await?);
        let count = count.first().copied().unwrap_or(0.0);
        if count.is_nan() || count <= 0.0 {
            continue;
        }
        tokens = tokens.max(count as u64);
        let values = floats(&read_exact(source, file, sums.offset, sums.size_bytes).await?);
        columns.insert(full, values.iter().map(|sum| sum / count).collect());
    }
    Importance::new(tokens, columns)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
