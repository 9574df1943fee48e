//! Quantizing a whole checkpoint, a few MiB at a time.

use super::{CheckpointWriter, TensorSpec, WriteOptions};
use crate::checkpoint::{Checkpoint, Stored, TRANSPOSED_KEY, read_exact};
use crate::error::WeightsError;
use crate::formats::{F32, Format};
use crate::policy::Policy;
use crate::source::Source;
use serde_json::Value;
use std::path::Path;

/// Files copied with the weights: tokenizer, chat template and licence.
const SIDE_FILES: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
];
const MAX_SIDE_BYTES: u64 = 256 << 20;
/// Rows are read in chunks of about this many bytes as f32.
const CHUNK_BYTES: usize = 4 << 20;
/// Chunk size for a matrix that is transposed: each chunk reads the whole tensor.
const TRANSPOSE_BYTES: usize = 64 << 20;

/// Progress of a quantization.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The current tensor; some of its rows have just been written.
    pub tensor: &'a str,
    /// Weights done so far, in all tensors.
    pub weights_done: u64,
    /// Number of weights of all tensors.
    pub weights_total: u64,
}

/// The result for one tensor.
#[derive(Clone, Debug)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// The format in which it is now stored.
    pub format: &'static dyn Format,
    /// Number of weights.
    pub weights: u64,
    /// Stored bytes.
    pub size_bytes: u64,
    /// Root of (squared error / squared weights) relative to the weights read; 0 when exact.
    pub relative_error: f64,
}

/// The result of a quantization.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every tensor, in file order.
    pub tensors: Vec<TensorReport>,
    /// Tensors that hold no weights (integer buffers) and were not written.
    pub skipped: Vec<String>,
}

impl Report {
    /// Bytes of all tensors.
    pub fn size_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.size_bytes).sum()
    }

    /// Weights of all tensors.
    pub fn weights(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.weights).sum()
    }

    /// Stored bits per weight over everything.
    pub fn bits_per_weight(&self) -> f64 {
        self.size_bytes() as f64 * 8.0 / self.weights().max(1) as f64
    }
}

/// Writes `checkpoint` to the new directory `out_dir` in the formats of `policy`, with its tokenizer and configuration.
///
/// Tensors already in the wanted format are copied; matrices stored as [in, out] are transposed for block formats, and
/// `config.json` records that. Errors: those of reading and writing, or a checkpoint quantized by another program.
pub async fn quantize_checkpoint(
    checkpoint: &Checkpoint,
    out_dir: impl AsRef<Path>,
    policy: &Policy,
    options: &WriteOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, WeightsError> {
    let out_dir = out_dir.as_ref();
    check_checkpoint(checkpoint, out_dir)?;
    // Blocks lie along the inputs, so matrices stored as [in, out] must be transposed for block formats.
    let transpose =
        !policy.linear.is_dense() && checkpoint.tensors().iter().any(|entry| checkpoint.is_transposed(entry));
    let mut report = Report::default();
    let mut specs = Vec::new();
    for entry in checkpoint.tensors() {
        if matches!(entry.stored, Stored::Dense(dtype) if !dtype.is_weight()) {
            report.skipped.push(entry.name.clone());
            continue;
        }
        let format = if entry.shape.is_empty() { &F32 } else { policy.format_for(&entry.name, &entry.shape) };
        let mut shape = entry.shape.clone();
        if transpose && checkpoint.is_transposed(entry) {
            shape.reverse();
        }
        specs.push(TensorSpec { name: entry.name.clone(), shape, format });
    }
    let weights_total = specs.iter().filter_map(|spec| checkpoint.tensor(&spec.name)).map(|entry| entry.count()).sum();
    let mut weights_done = 0;
    let mut writer = CheckpointWriter::create(out_dir, specs.clone(), options)?;
    for spec in &specs {
        let entry = checkpoint.require(&spec.name)?;
        let importance = policy.importance.get(&spec.name).map(Vec::as_slice);
        let transposed = transpose && checkpoint.is_transposed(entry);
        let (rows, step) = if transposed {
            (entry.k(), (TRANSPOSE_BYTES / (4 * entry.rows().max(1))).max(1))
        } else {
            (entry.rows(), entry.rows_per_chunk(&F32, CHUNK_BYTES))
        };
        let step = step.next_multiple_of(spec.format.rows_alignment(spec.shape.last().copied().unwrap_or(1)));
        let (mut error, mut square, mut size_bytes) = (0.0, 0.0, 0);
        for start in (0..rows).step_by(step) {
            let part = start..rows.min(start.saturating_add(step));
            let (planes, exact) = if transposed {
                let exact = checkpoint.read_planes_transposed(&spec.name, part.clone(), &F32, None).await?;
                (
                    checkpoint.read_planes_transposed(&spec.name, part, spec.format, importance).await?,
                    exact.dequantize(),
                )
            } else {
                let planes = checkpoint.read_planes_weighted(&spec.name, part.clone(), spec.format, importance).await?;
                (planes, checkpoint.read_rows_f32(&spec.name, part).await?)
            };
            for (before, after) in exact.iter().zip(planes.dequantize()) {
                error += f64::from(before - after).powi(2);
                square += f64::from(*before).powi(2);
            }
            weights_done += exact.len() as u64;
            size_bytes += planes.size_bytes() as u64;
            writer.write(&spec.name, &planes)?;
            progress(Progress { tensor: &spec.name, weights_done, weights_total });
        }
        report.tensors.push(TensorReport {
            name: spec.name.clone(),
            format: spec.format,
            weights: entry.count(),
            size_bytes,
            relative_error: if square > 0.0 { (error / square).sqrt() } else { 0.0 },
        });
    }
    write_config(checkpoint, transpose, &mut writer)?;
    copy_side_files(checkpoint, &mut writer).await?;
    writer.finish()?;
    Ok(report)
}

fn check_checkpoint(checkpoint: &Checkpoint, out_dir: &Path) -> Result<(), WeightsError> {
    let refuse = |what: String, remedy: &str| Err(WeightsError::Unsupported { what, remedy: remedy.to_owned() });
    let place = checkpoint.source().describe();
    let same =
        std::fs::canonicalize(out_dir).is_ok_and(|out| std::fs::canonicalize(&place).is_ok_and(|from| from == out));
    if same {
        return refuse(
            format!("quantizing {place} onto itself"),
            "name another directory; the original is needed to quantize differently later",
        );
    }
    let config = checkpoint.config();
    if let Some(method) = config.pointer("/quantization_config/quant_method").and_then(|method| method.as_str())
        && method != "bayan"
    {
        return refuse(
            format!("quantizing {place}, which {method} has quantized already,"),
            "start from the original checkpoint in BF16, F16 or F32",
        );
    }
    Ok(())
}

fn write_config(checkpoint: &Checkpoint, transposed: bool, writer: &mut CheckpointWriter) -> Result<(), WeightsError> {
    let mut config = checkpoint.config().clone();
    if let (Some(object), Some(quantization)) = (config.as_object_mut(), writer.quantization_config()) {
        object.insert("quantization_config".to_owned(), quantization);
    }
    if let (Some(object), true) = (config.as_object_mut(), transposed) {
        object.insert(TRANSPOSED_KEY.to_owned(), Value::Bool(true));
    }
    writer.write_file("config.json", format!("{config:#}\n").as_bytes())
}

/// Copies the side files: tokenizer, templates, licences.
///
/// Errors: a file cannot be read or written, or is too large.
pub async fn copy_side_files(checkpoint: &Checkpoint, writer: &mut CheckpointWriter) -> Result<(), WeightsError> {
    for (file, bytes) in side_files(checkpoint.source().as_ref()).await? {
        writer.write_file(file, &bytes)?;
    }
    Ok(())
}

/// The side files by name: tokenizer, templates, licences.
///
/// Errors: a file cannot be read, or is too large.
pub async fn side_files(source: &dyn Source) -> Result<Vec<(&'static str, Vec<u8>)>, WeightsError> {
    let mut found = Vec::new();
    for file in SIDE_FILES {
        let Some(size) = source.size(file).await? else { continue };
        if size > MAX_SIDE_BYTES {
            return Err(WeightsError::malformed(file, format!("expected at most {MAX_SIDE_BYTES} bytes, got {size}")));
        }
        found.push((*file, read_exact(source, file, 0, size).await?));
    }
    Ok(found)
}
