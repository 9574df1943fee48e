//! Writes a checkpoint as a GGUF file, the reverse of the reader: names, the order of rows, norms, configuration and
//! tokenizer.

use super::arch::{ARCHS, Arch, Exported, Key};
use super::blocks::BlockType;
use super::writer::{Declared, Entry, GgufWriter, block_type, blocks_of};
use crate::checkpoint::{Checkpoint, TensorEntry};
use crate::error::WeightsError;
use crate::formats::{F16, F32, Format, Planes};
use serde_json::Value;
use std::path::Path;

const CHUNK_BYTES: usize = 4 << 20;

/// How one tensor is written.
struct TensorExport<'a> {
    entry: &'a TensorEntry,
    declared: Declared,
    format: &'static dyn Format,
    interleaved: bool,
    plus_one: bool,
    /// Factor on the values.
    factor: f32,
}

/// Writes `checkpoint` to `target`, with the tokenizer's entries that
/// [`tokenizer_metadata`](super::vocabulary::metadata) made.
///
/// Errors: the architecture is not exported, it does not have a tensor of the checkpoint, or reading or writing failed.
pub async fn export(
    checkpoint: &Checkpoint,
    target: &Path,
    tokenizer: Vec<(String, Entry)>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), WeightsError> {
    let config = checkpoint.config();
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("none");
    let unsupported = |what: String, remedy: String| WeightsError::Unsupported { what, remedy };
    let found = Arch::by_model_type(model_type).and_then(|arch| Some((arch, arch.export?)));
    let (arch, more) = found.ok_or_else(|| {
        let written = ARCHS.iter().filter(|arch| arch.export.is_some()).flat_map(|arch| arch.model_types);
        let written = written.copied().collect::<Vec<_>>().join(", ");
        unsupported(
            format!("writing a {model_type} model as GGUF"),
            format!("the model types that can be written are {written}"),
        )
    })?;
    let (head_dim, mut metadata) = metadata(arch, config)?;
    let Exported { keys, factor } = more(config, head_dim)?;
    metadata.extend(keys.into_iter().map(|(key, value)| {
        let entry = match value {
            Key::Whole(number) => Entry::Number(number),
            Key::Float(number) => Entry::Float(number),
        };
        (format!("{}.{key}", arch.gguf), entry)
    }));
    metadata.extend(tokenizer);
    let mut exports = Vec::new();
    for entry in checkpoint.tensors() {
        if entry.name.ends_with("rotary_emb.inv_freq")
            || (entry.name == "lm_head.weight" && config.get("tie_word_embeddings") == Some(&Value::Bool(true)))
        {
            continue;
        }
        let name = arch.to_gguf(&entry.name);
        let name = name.ok_or_else(|| {
            unsupported(
                format!("writing the tensor {:?} as GGUF", entry.name),
                "llama.cpp's form of this architecture has no such tensor".to_owned(),
            )
        })?;
        exports.push(tensor_export(arch, entry, name, factor));
    }
    let mut declared: Vec<Declared> = exports.iter().map(|export| export.declared.clone()).collect();
    let factors = rope_factors(config, head_dim);
    if let Some(factors) = &factors {
        declared.push(Declared {
            name: "rope_freqs.weight".to_owned(),
            shape: vec![factors.len()],
            kind: BlockType::F32,
        });
    }
    let mut writer = GgufWriter::create(target, &metadata, declared)?;
    let (mut done, total) = (0, exports.iter().map(|export| export.entry.count()).sum());
    for export in &exports {
        let (rows, step) = (export.entry.rows(), export.entry.rows_per_chunk(&F32, CHUNK_BYTES));
        let step = if export.interleaved && rows > 1 { (step / head_dim).max(1) * head_dim } else { step };
        for start in (0..rows).step_by(step) {
            let part = start..rows.min(start + step);
            done += (part.len() * export.entry.k()) as u64;
            writer.write(&export.bytes(checkpoint, part, head_dim).await?)?;
            progress(done, total);
        }
    }
    if let Some(factors) = factors {
        writer.write(&factors.iter().flat_map(|factor| factor.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    writer.finish()
}

fn tensor_export<'a>(
    arch: &Arch,
    entry: &'a TensorEntry,
    name: String,
    factor: Option<(&str, f32)>,
) -> TensorExport<'a> {
    let native = entry.loaded_format(None);
    // GGUF stores vectors as f32; formats without an equal block type are written as f16.
    let kind = if entry.shape.len() < 2 { BlockType::F32 } else { block_type(native, entry.k()) };
    let format: &'static dyn Format = match kind {
        BlockType::F32 => &F32,
        BlockType::F16 => &F16,
        _ => native,
    };
    TensorExport {
        interleaved: arch.is_interleaved(&entry.name),
        plus_one: arch.norm_plus_one && entry.name.ends_with("norm.weight"),
        factor: factor.filter(|(ending, _)| entry.name.ends_with(ending)).map_or(1.0, |(_, factor)| factor),
        declared: Declared { name, shape: entry.shape.clone(), kind },
        entry,
        format,
    }
}

impl TensorExport<'_> {
    /// Rows times the factor; for dense formats only, because blocks would have to be quantized again.
    async fn scaled(&self, checkpoint: &Checkpoint, rows: std::ops::Range<usize>) -> Result<Planes, WeightsError> {
        if !self.format.is_dense() {
            return Err(WeightsError::Unsupported {
                what: format!(
                    "writing the quantized {:?} with another scale of the queries than llama.cpp's",
                    self.entry.name
                ),
                remedy: "export the checkpoint that it was quantized from".to_owned(),
            });
        }
        let values: Vec<f32> =
            checkpoint.read_rows_f32(&self.entry.name, rows).await?.iter().map(|value| value * self.factor).collect();
        let mut planes = Planes::new(self.format, self.entry.k());
        planes.push_rows(&values, None).map_err(|error| self.unrepresentable(error.index, error.value))?;
        Ok(planes)
    }

    fn unrepresentable(&self, index: usize, value: f32) -> WeightsError {
        let format = self.declared.kind.name();
        WeightsError::Unrepresentable { tensor: self.entry.name.clone(), index: index as u64, value, format }
    }

    async fn bytes(
        &self,
        checkpoint: &Checkpoint,
        rows: std::ops::Range<usize>,
        head: usize,
    ) -> Result<Vec<u8>, WeightsError> {
        let (count, first) = (rows.len(), rows.start * self.entry.k());
        let blocks =
            |planes: Planes| blocks_of(&planes, self.declared.kind).map_err(|value| self.unrepresentable(first, value));
        let bytes = if self.plus_one {
            checkpoint
                .read_rows_f32(&self.entry.name, rows)
                .await?
                .iter()
                .flat_map(|value| ((value + 1.0) * self.factor).to_le_bytes())
                .collect()
        } else if self.factor != 1.0 {
            blocks(self.scaled(checkpoint, rows).await?)?
        } else {
            blocks(checkpoint.read_planes(&self.entry.name, rows, self.format).await?)?
        };
        if !self.interleaved {
            return Ok(bytes);
        }
        // The rows of a matrix, or the elements of a vector.
        let items = if count == 1 { self.entry.k() } else { count };
        if head < 2 || !items.is_multiple_of(head) {
            return Err(WeightsError::Request {
                tensor: self.entry.name.clone(),
                expected: format!("whole heads of {head}"),
                got: format!("{items} rows"),
            });
        }
        Ok(interleave(&bytes, bytes.len() / items.max(1), head))
    }
}

/// Interleaves the two halves of each head; an item has `width` bytes.
pub fn interleave(bytes: &[u8], width: usize, head: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for head_bytes in bytes.chunks_exact(width * head) {
        for index in 0..head / 2 {
            for half in 0..2 {
                out.extend_from_slice(&head_bytes[(half * head / 2 + index) * width..][..width]);
            }
        }
    }
    out
}

/// The head size, and the metadata with llama.cpp's keys.
fn metadata(arch: &Arch, config: &Value) -> Result<(usize, Vec<(String, Entry)>), WeightsError> {
    let size = |key: &str| config.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let need = |key: &str| {
        size(key)
            .ok_or_else(|| WeightsError::malformed("config.json", format!("expected a whole number under {key:?}")))
    };
    let rope = config.get("rope_parameters").or(config.get("rope_scaling")).filter(|value| value.is_object());
    let number = |key: &str| config.get(key).and_then(Value::as_f64).map(|n| n as f32);
    // Gemma 3 has one set for the layers with full attention and one for the others.
    let rope = rope.map(|rope| rope.get("full_attention").unwrap_or(rope));
    let theta =
        rope.and_then(|rope| rope.get("rope_theta")).and_then(Value::as_f64).map(|n| n as f32).or(number("rope_theta"));
    let (hidden, heads) = (need("hidden_size")?, need("num_attention_heads")?);
    let head_dim = size("head_dim").unwrap_or(hidden / heads.max(1));
    let mut out = vec![("general.architecture".to_owned(), Entry::Text(arch.gguf.to_owned()))];
    let mut add = |key: &str, entry: Entry| out.push((format!("{}.{key}", arch.gguf), entry));
    add("block_count", Entry::Number(need("num_hidden_layers")?));
    add("context_length", Entry::Number(size("max_position_embeddings").unwrap_or(2048)));
    add("embedding_length", Entry::Number(hidden));
    add("feed_forward_length", Entry::Number(need("intermediate_size")?));
    add("attention.head_count", Entry::Number(heads));
    add("attention.head_count_kv", Entry::Number(size("num_key_value_heads").unwrap_or(heads)));
    add("attention.key_length", Entry::Number(head_dim));
    add("attention.value_length", Entry::Number(head_dim));
    add("rope.dimension_count", Entry::Number(head_dim));
    match number("layer_norm_eps") {
        Some(eps) => add("attention.layer_norm_epsilon", Entry::Float(eps)),
        None => add("attention.layer_norm_rms_epsilon", Entry::Float(number("rms_norm_eps").unwrap_or(1e-6))),
    }
    add("rope.freq_base", Entry::Float(theta.unwrap_or(10_000.0)));
    add("vocab_size", Entry::Number(need("vocab_size")?));
    let kind =
        rope.and_then(|rope| rope.get("rope_type").or(rope.get("type"))).and_then(Value::as_str).unwrap_or("default");
    let of = |key: &str| rope.and_then(|rope| rope.get(key)).and_then(Value::as_f64);
    match kind {
        "default" | "llama3" | "frequency_factors" => {}
        "linear" | "yarn" => {
            add("rope.scaling.type", Entry::Text(kind.to_owned()));
            let factor = of("factor").unwrap_or(1.0);
            add("rope.scaling.factor", Entry::Float(factor as f32));
            of("original_max_position_embeddings")
                .into_iter()
                .for_each(|n| add("rope.scaling.original_context_length", Entry::Number(n as u32)));
            for (from, to) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
                of(from).into_iter().for_each(|n| add(&format!("rope.scaling.{to}"), Entry::Float(n as f32)));
            }
            // llama.cpp's is a factor on YaRN's own temperature of attention.
            let own = 0.1 * factor.ln() + 1.0;
            of("attention_factor")
                .into_iter()
                .for_each(|n| add("rope.scaling.attn_factor", Entry::Float((n / own) as f32)));
        }
        _ => {
            return Err(WeightsError::Unsupported {
                what: format!("writing the rotary scaling {kind:?} as GGUF"),
                remedy: "linear, yarn and llama3 have a form there".to_owned(),
            });
        }
    }
    Ok((head_dim as usize, out))
}

/// LLaMA 3's rope scaling as a divisor of each frequency, which is GGUF's form.
fn rope_factors(config: &Value, head_dim: usize) -> Option<Vec<f32>> {
    let rope = config.get("rope_parameters").or(config.get("rope_scaling"))?;
    match rope.get("rope_type").or(rope.get("type"))?.as_str()? {
        "frequency_factors" => {
            rope.get("factors")?.as_array()?.iter().map(|value| Some(value.as_f64()? as f32)).collect()
        }
        "llama3" => {
            let of = |key: &str, default: f64| rope.get(key).and_then(Value::as_f64).unwrap_or(default);
            let theta = rope.get("rope_theta").or(config.get("rope_theta")).and_then(Value::as_f64).unwrap_or(10_000.0);
            let (low, high) = (of("low_freq_factor", 1.0), of("high_freq_factor", 4.0));
            let (factor, original) = (of("factor", 1.0), of("original_max_position_embeddings", 8192.0));
            let divisor = |i: usize| {
                let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
                if wavelength < original / high {
                    1.0
                } else if wavelength > original / low {
                    factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            };
            Some((0..head_dim / 2).map(|i| divisor(i) as f32).collect())
        }
        _ => None,
    }
}
