//! Merges adapters into their base: W + Σ scale · B A, and what else an adapter changes, written as a checkpoint a few
//! MiB at a time.
//!
//! The sum is computed in f32 and rounded once, to the output format. Rejected: merging on the device, because it would
//! hold the whole base there, and a merge reads and writes every weight only once.

mod changes;

use std::path::Path;

use bayan_models::{Adapter, AdapterError};
use bayan_weights::formats::F32;
use bayan_weights::{
    Checkpoint, CheckpointWriter, Dtype, Format, Planes, Policy, Progress, Stored, TensorEntry, TensorSpec,
    WeightsError, WriteOptions,
};
use serde_json::Value;

use changes::Change;

/// Rows are read in chunks of about this many bytes as f32.
const CHUNK_BYTES: usize = 4 << 20;

/// Why a merge failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// Reading the base or writing the result failed.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The adapter does not fit the base.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The format cannot represent a sum.
    #[error("{tensor}: expected weights that {format} can hold, got {value}; merge to bf16 or f32")]
    Range {
        /// The tensor.
        tensor: String,
        /// The format.
        format: &'static str,
        /// The weight.
        value: f32,
    },
}

/// Statistics of a merge.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MergeReport {
    /// Matrices that an adapter changed.
    pub merged: usize,
    /// All tensors written.
    pub tensors: usize,
    /// Bytes written.
    pub size_bytes: u64,
    /// Root of (Σ (adapters' change)² / Σ weights²) over the changed matrices.
    pub relative_change: f64,
    /// Root of (Σ (rounding error)² / Σ (adapters' change)²) over them: at 1 or more, rounding hides the change.
    pub rounding: f64,
}

/// The output format.
#[derive(Debug, Clone)]
pub enum MergeFormat {
    /// Every tensor in this dense format.
    Dense(&'static dyn Format),
    /// A quantized checkpoint; tensors that are quantized in the base keep their format.
    Quantized(Policy),
}

impl MergeFormat {
    fn of(&self, entry: &TensorEntry) -> &'static dyn Format {
        match self {
            MergeFormat::Dense(format) => *format,
            MergeFormat::Quantized(_) if entry.shape.is_empty() => &F32,
            MergeFormat::Quantized(policy) => match entry.stored {
                Stored::Planes(format) => format,
                Stored::Foreign(foreign) => foreign.native,
                Stored::Dense(_) => policy.format_for(&entry.name, &entry.shape),
            },
        }
    }

    /// The name of the dense type, for `config.json`.
    fn dtype(&self) -> Option<&'static str> {
        match self {
            MergeFormat::Dense(format) => match format.planes()[0].dtype {
                Dtype::F32 => Some("float32"),
                Dtype::F16 => Some("float16"),
                _ => Some("bfloat16"),
            },
            MergeFormat::Quantized(_) => None,
        }
    }
}

/// Writes the base with the adapters merged into it (each with a factor on its own scale) to the new directory `out`,
/// with tokenizer and configuration. `progress` is called after every few rows.
///
/// # Errors
/// The adapter does not fit the base, or a file cannot be read or written; `out` is then unchanged.
pub async fn merge(
    checkpoint: &Checkpoint,
    adapters: &[(Adapter, f32)],
    out: &Path,
    format: &MergeFormat,
    options: &WriteOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<MergeReport, MergeError> {
    let head = changes::untied_head(checkpoint, adapters);
    for (adapter, _) in adapters {
        changes::check(checkpoint, adapter, head.as_ref())?;
    }
    let weights = |entry: &&TensorEntry| !matches!(entry.stored, Stored::Dense(dtype) if !dtype.is_weight());
    let spec = |entry: &TensorEntry| TensorSpec {
        name: entry.name.clone(),
        shape: entry.shape.clone(),
        format: format.of(entry),
    };
    let mut specs: Vec<TensorSpec> = checkpoint.tensors().iter().filter(weights).map(spec).collect();
    if let Some((name, embedding)) = &head {
        specs.push(TensorSpec { name: name.clone(), ..spec(checkpoint.require(embedding)?) });
    }
    let weights_total = specs.iter().map(|spec| spec.shape.iter().product::<usize>() as u64).sum();
    let mut writer = CheckpointWriter::create(out, specs.clone(), options)?;
    let mut sums = Sums::default();
    let (mut weights_done, mut report) = (0, MergeReport { tensors: specs.len(), ..MergeReport::default() });
    for spec in &specs {
        let from = head.as_ref().filter(|(name, _)| *name == spec.name).map_or(&spec.name, |(_, embedding)| embedding);
        let entry = checkpoint.require(from)?;
        let change = Change::of(adapters, &spec.name);
        report.merged += usize::from(!change.is_none());
        let (rows, step) = (entry.rows(), entry.rows_per_chunk(&F32, CHUNK_BYTES));
        for start in (0..rows).step_by(step) {
            let part = start..rows.min(start.saturating_add(step));
            let planes = if change.is_none() {
                checkpoint.read_planes(from, part.clone(), spec.format).await?
            } else {
                let mut values = checkpoint.read_rows_f32(from, part.clone()).await?;
                let before = values.clone();
                change.apply(&mut values, start, entry.k());
                let mut planes = Planes::new(spec.format, entry.k());
                let range = |error: bayan_weights::formats::Unrepresentable| MergeError::Range {
                    tensor: spec.name.clone(),
                    format: spec.format.name(),
                    value: error.value,
                };
                planes.push_rows(&values, None).map_err(range)?;
                sums.add(&before, &values, &planes.dequantize());
                planes
            };
            weights_done += (part.len() * entry.k()) as u64;
            report.size_bytes += planes.size_bytes() as u64;
            writer.write(&spec.name, &planes)?;
            progress(Progress { tensor: &spec.name, weights_done, weights_total });
        }
    }
    write_config(checkpoint, format, head.is_some(), &mut writer)?;
    bayan_weights::directory::copy_side_files(checkpoint, &mut writer).await?;
    writer.finish()?;
    (report.relative_change, report.rounding) = sums.ratios();
    Ok(report)
}

#[derive(Default)]
struct Sums {
    weights: f64,
    change: f64,
    error: f64,
}

impl Sums {
    fn add(&mut self, before: &[f32], exact: &[f32], written: &[f32]) {
        for ((&before, &exact), &written) in before.iter().zip(exact).zip(written) {
            self.weights += f64::from(before).powi(2);
            self.change += f64::from(exact - before).powi(2);
            self.error += f64::from(written - exact).powi(2);
        }
    }

    fn ratios(&self) -> (f64, f64) {
        let root = |part: f64, whole: f64| if whole > 0.0 { (part / whole).sqrt() } else { 0.0 };
        (root(self.change, self.weights), root(self.error, self.change))
    }
}

fn write_config(
    checkpoint: &Checkpoint,
    format: &MergeFormat,
    untied: bool,
    writer: &mut CheckpointWriter,
) -> Result<(), MergeError> {
    let mut config = checkpoint.config().clone();
    if untied {
        changes::untie(&mut config);
    }
    if let Some(object) = config.as_object_mut() {
        match writer.quantization_config() {
            Some(quantization) => object.insert("quantization_config".to_owned(), quantization),
            None => object.shift_remove("quantization_config"),
        };
        if let Some(dtype) = format.dtype() {
            let name = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
            object.insert(name.to_owned(), Value::from(dtype));
        }
    }
    writer.write_file("config.json", format!("{config:#}\n").as_bytes())?;
    Ok(())
}
