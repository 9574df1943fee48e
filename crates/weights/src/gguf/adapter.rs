//! LoRA adapters as GGUF files, as llama.cpp's converter and `bayan export --adapter` write them: pairs of matrices
//! named after the tensor that they change, and one alpha.
//!
//! As for models, names and the order of rows become Hugging Face's. The order depends on the size of a head, which the
//! file does not state, so the reader asks for it.

use super::arch::Arch;
use super::header::{Header, TensorInfo, read_header};
use super::tensors::interleaved;
use crate::checkpoint::read_exact;
use crate::error::WeightsError;
use crate::source::Source;
use std::collections::BTreeMap;

/// The pair of one module: y += alpha / rank · B (A x).
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterPair {
    /// Rank r.
    pub rank: usize,
    /// Columns of the base weight.
    pub in_features: usize,
    /// Rows of the base weight.
    pub out_features: usize,
    /// A [r, in], row-major.
    pub a: Vec<f32>,
    /// B [out, r], row-major.
    pub b: Vec<f32>,
}

/// An adapter's file.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFile {
    /// The numerator of the scale; 0 means a scale of 1.
    pub alpha: f32,
    /// The pairs by module (`model.layers.0.self_attn.q_proj`).
    pub pairs: BTreeMap<String, AdapterPair>,
}

const A: &str = ".lora_a";
const B: &str = ".lora_b";

/// Reads the adapter in `file`, for a base model with heads of size `head_dim`.
///
/// # Errors
/// A damaged file, a model or another kind of adapter, a tensor that is not one of a pair, a pair for a matrix that the
/// architecture's files change ([`Arch::changed_pairs`]), or values that are not finite.
pub async fn read_adapter(source: &dyn Source, file: &str, head_dim: usize) -> Result<AdapterFile, WeightsError> {
    let header = read_header(source, file).await?;
    let arch = check(file, &header)?;
    let bad = |problem: String| WeightsError::malformed(file, problem);
    let alpha = header.number("adapter.lora.alpha").ok_or_else(|| bad("it has no adapter.lora.alpha".to_owned()))?;
    if !alpha.is_finite() {
        return Err(bad(format!("adapter.lora.alpha: expected a finite number, got {alpha}")));
    }
    let by_name: BTreeMap<&str, &TensorInfo> = header.tensors.iter().map(|info| (info.name.as_str(), info)).collect();
    let mut pairs = BTreeMap::new();
    for (name, info) in &by_name {
        let (base, other) = match (name.strip_suffix(A), name.strip_suffix(B)) {
            (Some(base), _) => (base, format!("{base}{B}")),
            (_, Some(base)) => (base, format!("{base}{A}")),
            _ => return Err(bad(format!("tensor {name:?}: expected names that end in {A} or {B}"))),
        };
        let Some(other) = by_name.get(other.as_str()) else {
            return Err(bad(format!("tensor {name:?}: expected {other:?} beside it")));
        };
        if name.ends_with(B) {
            continue;
        }
        let tensor = arch.to_hugging_face(base);
        let module = tensor.as_deref().and_then(|tensor| tensor.strip_suffix(".weight"));
        let (Some(tensor), Some(module)) = (&tensor, module) else {
            return Err(bad(format!("tensor {name:?}: the architecture {:?} has no matrix {base:?}", arch.gguf)));
        };
        if arch.changed_pairs.iter().any(|ending| module.ends_with(ending)) {
            return Err(WeightsError::Unsupported {
                what: format!("{file}: tensor {name:?}: a pair for a matrix that {:?} files change", arch.gguf),
                remedy: "take the adapter's safetensors; llama.cpp runs this file, on a GGUF model".to_owned(),
            });
        }
        let mut pair = pair(source, file, info, other).await?;
        if arch.is_interleaved(tensor) {
            reorder(&mut pair, head_dim).map_err(|problem| bad(format!("tensor {name:?}: {problem}")))?;
        }
        pairs.insert(module.to_owned(), pair);
    }
    if pairs.is_empty() {
        return Err(bad("expected at least one pair of matrices, found none".to_owned()));
    }
    Ok(AdapterFile { alpha: alpha as f32, pairs })
}

/// The architecture of an adapter's file.
fn check(file: &str, header: &Header) -> Result<&'static Arch, WeightsError> {
    if header.text("general.type") != Some("adapter") {
        return Err(WeightsError::Contents {
            file: file.to_owned(),
            found: "a model, not an adapter".to_owned(),
            remedy: "give it with --model".to_owned(),
        });
    }
    let unsupported = |what: String| WeightsError::Unsupported {
        what: format!("{file}: {what}"),
        remedy: "LoRA adapters are read; convert the adapter again, or take its safetensors".to_owned(),
    };
    let kind = header.text("adapter.type").unwrap_or("none");
    if kind != "lora" {
        return Err(unsupported(format!("an adapter of type {kind:?}")));
    }
    const KNOWN: [&str; 4] =
        ["adapter.type", "adapter.lora.alpha", "adapter.lora.task_name", "adapter.lora.prompt_prefix"];
    let unknown = |key: &&String| key.starts_with("adapter.") && !KNOWN.contains(&key.as_str());
    if let Some(key) = header.metadata.keys().find(unknown) {
        return Err(unsupported(format!("the key {key:?}")));
    }
    super::architecture(file, header)
}

async fn pair(source: &dyn Source, file: &str, a: &TensorInfo, b: &TensorInfo) -> Result<AdapterPair, WeightsError> {
    let (&[rank, in_features], &[out_features, columns]) = (&a.shape[..], &b.shape[..]) else {
        return Err(WeightsError::malformed(file, format!("tensor {:?}: expected two matrices", a.name)));
    };
    if columns != rank || rank == 0 || in_features == 0 || out_features == 0 {
        return Err(WeightsError::malformed(
            file,
            format!(
                "tensor {:?}: its pair has the shapes {:?} and {:?}, expected [r, in] and [out, r]",
                a.name, a.shape, b.shape
            ),
        ));
    }
    Ok(AdapterPair {
        rank,
        in_features,
        out_features,
        a: values(source, file, a).await?,
        b: values(source, file, b).await?,
    })
}

async fn values(source: &dyn Source, file: &str, info: &TensorInfo) -> Result<Vec<f32>, WeightsError> {
    let bytes = read_exact(source, file, info.offset, info.size_bytes).await?;
    let mut values = vec![0.0; info.shape.iter().product()];
    info.kind.decode(&bytes, &mut values);
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(index) => {
            Err(WeightsError::NotFinite { tensor: info.name.clone(), index: index as u64, value: values[index] })
        }
    }
}

/// Puts the rows of B into Hugging Face's order.
fn reorder(pair: &mut AdapterPair, head: usize) -> Result<(), String> {
    if head < 2 || !head.is_multiple_of(2) || !pair.out_features.is_multiple_of(head) {
        return Err(format!(
            "its {} rows are no whole heads of {head}; is this the adapter's base model?",
            pair.out_features
        ));
    }
    let row = |row: usize| &pair.b[interleaved(row, head) * pair.rank..][..pair.rank];
    pair.b = (0..pair.out_features).flat_map(|index| row(index).to_vec()).collect();
    Ok(())
}
