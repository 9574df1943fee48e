//! Writes a checkpoint as a GGUF file, the reverse of the reader: names, the order of rows, norms, configuration and
//! tokenizer.

use super::arch::Arch;
use super::arch::written::{Change, Exported, Heads, Key, Model};
use super::blocks::BlockType;
use super::tensors::Values;
use super::writer::{Declared, Entry, GgufWriter, block_type, blocks_of};
use crate::checkpoint::{Checkpoint, TensorEntry};
use crate::error::WeightsError;
use crate::formats::{F16, F32, Format, Planes};
use serde_json::Value;
use std::ops::Range;
use std::path::Path;

const CHUNK_BYTES: usize = 4 << 20;

/// How one tensor is written.
struct TensorExport<'a> {
    entry: &'a TensorEntry,
    declared: Declared,
    format: &'static dyn Format,
    interleaved: bool,
    /// The matrix is stored as [inputs, outputs].
    transposed: bool,
    change: Change,
}

/// Writes `checkpoint` to `target`, with the tokenizer's entries that
/// [`tokenizer_metadata`](super::vocabulary::metadata) made.
///
/// Errors: llama.cpp does not have the architecture, or would compute something else than this model; it does not have
/// a tensor of the checkpoint; or reading or writing failed.
pub async fn export(
    checkpoint: &Checkpoint,
    target: &Path,
    tokenizer: Vec<(String, Entry)>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), WeightsError> {
    let config = checkpoint.config();
    let arch = arch_of(config)?;
    let model = model_of(checkpoint)?;
    let exported = (arch.export)(&model)?;
    let mut metadata = metadata(arch, &model, &exported)?;
    metadata.extend(tokenizer);
    let exports = exports(arch, checkpoint, &exported)?;
    let mut declared: Vec<Declared> = exports.iter().map(|export| export.declared.clone()).collect();
    let factors = if exported.own_rotary { None } else { rope_factors(config, model.head_dim) };
    let mut numbers = exported.tensors;
    numbers.extend(factors.map(|factors| ("rope_freqs.weight", factors)));
    declared.extend(numbers.iter().map(|(name, values)| Declared {
        name: (*name).to_owned(),
        shape: vec![values.len()],
        kind: BlockType::F32,
    }));
    let mut writer = GgufWriter::create(target, &metadata, declared)?;
    let (mut done, total) = (0, exports.iter().map(|export| export.entry.count()).sum());
    for export in &exports {
        for part in export.parts(model.head_dim) {
            done += (part.len() * export.entry.k()) as u64;
            writer.write(&export.bytes(checkpoint, part, model.head_dim).await?)?;
            progress(done, total);
        }
    }
    for (_, values) in numbers {
        writer.write(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    writer.finish()
}

/// The architecture of a configuration.
fn arch_of(config: &Value) -> Result<&'static Arch, WeightsError> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("none");
    Arch::by_model_type(model_type).ok_or_else(|| WeightsError::Unsupported {
        what: format!("writing a {model_type} model as GGUF"),
        remedy: format!(
            "the model types that can be written are {}",
            super::arch::ARCHS.iter().flat_map(|arch| arch.model_types).copied().collect::<Vec<_>>().join(", ")
        ),
    })
}

fn model_of(checkpoint: &Checkpoint) -> Result<Model<'_>, WeightsError> {
    let mut model = Model { config: checkpoint.config(), head_dim: 0, checkpoint };
    let head_dim = match model.size("head_dim") {
        Some(head_dim) => head_dim,
        None => required(&model, "hidden_size")? / required(&model, "num_attention_heads")?.max(1),
    };
    model.head_dim = head_dim as usize;
    Ok(model)
}

/// The tensors that are written: those of the checkpoint, and an output head that is made of the embedding.
fn exports<'a>(
    arch: &Arch,
    checkpoint: &'a Checkpoint,
    exported: &Exported,
) -> Result<Vec<TensorExport<'a>>, WeightsError> {
    let tied = exported.tied || checkpoint.config().get("tie_word_embeddings") == Some(&Value::Bool(true));
    let mut exports = Vec::new();
    for entry in checkpoint.tensors() {
        // Buffers that follow from the configuration, and Qwen's layer that predicts further tokens ahead.
        let derived = ["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", "relative_pe.slopes"];
        if derived.iter().any(|ending| entry.name.ends_with(ending))
            || entry.name.starts_with("mtp.")
            || (entry.name == "lm_head.weight" && tied)
        {
            continue;
        }
        let name = arch.to_gguf(&entry.name).ok_or_else(|| WeightsError::Unsupported {
            what: format!("writing the tensor {:?} as GGUF", entry.name),
            remedy: "llama.cpp's form of this architecture has no such tensor".to_owned(),
        })?;
        let change = exported.change.as_ref().map(|change| change(&entry.name, &entry.shape)).unwrap_or_default();
        if let (Some(factor), "token_embd.weight") = (exported.head, name.as_str()) {
            let head = if factor == 1.0 { Change::default() } else { Change::factor(factor) };
            exports.push(tensor_export(arch, checkpoint, entry, "output.weight".to_owned(), head));
        }
        exports.push(tensor_export(arch, checkpoint, entry, name, change));
    }
    Ok(exports)
}

fn tensor_export<'a>(
    arch: &Arch,
    checkpoint: &Checkpoint,
    entry: &'a TensorEntry,
    name: String,
    mut change: Change,
) -> TensorExport<'a> {
    if arch.norm_plus_one && entry.name.ends_with("norm.weight") && !change.whole_norm {
        change.values = Values::PlusOne;
    }
    let transposed = checkpoint.is_transposed(entry);
    let mut shape = change.shape.clone().unwrap_or_else(|| entry.shape.clone());
    if transposed {
        shape.reverse();
    }
    // Blocks must divide the columns, and runs of columns that change places.
    let k = if transposed { entry.rows() } else { entry.k() };
    let run = change.columns.map_or(k, |columns| columns.run);
    let native = entry.loaded_format(None);
    // GGUF stores vectors as f32; formats without an equal block type are written as f16.
    let kind = if entry.shape.len() < 2 || change.exact { BlockType::F32 } else { block_type(native, run) };
    let format: &'static dyn Format = match kind {
        BlockType::F32 => &F32,
        BlockType::F16 => &F16,
        _ => native,
    };
    TensorExport {
        interleaved: arch.is_interleaved(&entry.name),
        transposed,
        declared: Declared { name, shape, kind },
        entry,
        format,
        change,
    }
}

impl TensorExport<'_> {
    /// The parts in which the rows are read; those that change places are read at once.
    fn parts(&self, head: usize) -> Vec<Range<usize>> {
        let rows = self.entry.rows();
        let whole = self.transposed || self.change.rows.is_some();
        let step = if whole { rows.max(1) } else { self.entry.rows_per_chunk(&F32, CHUNK_BYTES) };
        let step = if self.interleaved && rows > 1 && head > 0 { (step / head).max(1) * head } else { step };
        (0..rows).step_by(step).map(|start| start..rows.min(start + step)).collect()
    }

    fn unrepresentable(&self, index: usize, value: f32) -> WeightsError {
        let format = self.declared.kind.name();
        WeightsError::Unrepresentable { tensor: self.entry.name.clone(), index: index as u64, value, format }
    }

    /// Blocks whose values are changed would have to be quantized again.
    fn refuse_blocks(&self) -> WeightsError {
        WeightsError::Unsupported {
            what: format!("writing the quantized {:?}, which is multiplied in llama.cpp's form,", self.entry.name),
            remedy: "export the checkpoint that it was quantized from, and quantize the file with llama.cpp".to_owned(),
        }
    }

    /// Changed values as planes; for dense formats only.
    async fn changed(&self, checkpoint: &Checkpoint, rows: Range<usize>) -> Result<Planes, WeightsError> {
        if !self.format.is_dense() {
            return Err(self.refuse_blocks());
        }
        let (first, k) = (rows.start, self.entry.k());
        let mut values = checkpoint.read_rows_f32(&self.entry.name, rows).await?;
        match self.change.values {
            Values::Same => {}
            Values::PlusOne => values.iter_mut().for_each(|value| *value += 1.0),
            Values::MinusExp => values.iter_mut().for_each(|value| *value = -value.exp()),
        }
        for (index, row) in values.chunks_exact_mut(k.max(1)).enumerate() {
            let factor = self.change.factors.iter().find(|(end, _)| first + index < *end);
            row.iter_mut().for_each(|value| *value *= factor.map_or(1.0, |(_, factor)| *factor));
        }
        let mut planes = Planes::new(self.format, k);
        let done = planes.push_rows(&values, None);
        done.map_err(|error| self.unrepresentable(first * k + error.index, error.value))?;
        Ok(planes)
    }

    async fn planes(&self, checkpoint: &Checkpoint, rows: Range<usize>) -> Result<Planes, WeightsError> {
        let name = &self.entry.name;
        if self.transposed {
            return checkpoint.read_planes_transposed(name, 0..self.entry.k(), self.format, None).await;
        }
        match self.change.values == Values::Same && self.change.factors.is_empty() {
            true => checkpoint.read_planes(name, rows, self.format).await,
            false => self.changed(checkpoint, rows).await,
        }
    }

    async fn bytes(&self, checkpoint: &Checkpoint, rows: Range<usize>, head: usize) -> Result<Vec<u8>, WeightsError> {
        let (count, first) = (rows.len(), rows.start * self.entry.k());
        let planes = self.planes(checkpoint, rows).await?;
        let bytes = blocks_of(&planes, self.declared.kind).map_err(|value| self.unrepresentable(first, value))?;
        // The rows of a matrix, or the elements of a vector.
        let items = if count == 1 { self.entry.k() } else { count };
        let odd = |expected: String| WeightsError::Request {
            tensor: self.entry.name.clone(),
            expected,
            got: format!("shape {:?}", self.entry.shape),
        };
        if let Some(heads) = self.change.columns {
            let runs = heads.run / self.declared.kind.block();
            let width = self.declared.kind.bytes() * runs;
            if heads.count() != self.entry.k() || runs == 0 {
                return Err(odd(format!("{} columns of value heads", heads.count())));
            }
            // A run has one value head, so that whole runs change places.
            let runs = Heads { run: 1, ..heads };
            return Ok(bytes.chunks_exact(width * runs.count()).flat_map(|row| reordered(row, width, runs)).collect());
        }
        if let Some(heads) = self.change.rows {
            return match heads.count() == items {
                true => Ok(reordered(&bytes, bytes.len() / items.max(1), heads)),
                false => Err(odd(format!("{} rows of value heads", heads.count()))),
            };
        }
        if !self.interleaved {
            return Ok(bytes);
        }
        if head < 2 || !items.is_multiple_of(head) {
            return Err(odd(format!("whole heads of {head}")));
        }
        Ok(interleave(&bytes, bytes.len() / items.max(1), head))
    }
}

/// Puts the pair of a LoRA adapter into the form of the matrix `tensor` (Hugging Face's name) that it changes: A
/// \[rank, inputs\] and B \[outputs, rank\], for which the same factors and orders hold as for rows and columns of it.
///
/// Errors: as [`export`], and a pair of other sizes than the matrix.
pub fn change_adapter(
    checkpoint: &Checkpoint,
    tensor: &str,
    rank: usize,
    a: &mut Vec<f32>,
    b: &mut Vec<f32>,
) -> Result<(), WeightsError> {
    let arch = arch_of(checkpoint.config())?;
    let model = model_of(checkpoint)?;
    let entry = checkpoint.require(tensor)?;
    let mut shape = [entry.rows(), entry.k()];
    if checkpoint.is_transposed(entry) {
        shape.reverse();
    }
    let [outputs, inputs] = shape;
    let lengths = (a.len(), b.len());
    let odd = |expected: String| WeightsError::Request {
        tensor: tensor.to_owned(),
        expected,
        got: format!("a pair of {} and {} numbers", lengths.0, lengths.1),
    };
    if a.len() != rank * inputs || b.len() != rank * outputs || rank == 0 {
        return Err(odd(format!("an adapter of rank {rank} for [{outputs}, {inputs}]")));
    }
    let change = (arch.export)(&model)?.change.map(|change| change(tensor, &entry.shape)).unwrap_or_default();
    for (row, values) in b.chunks_exact_mut(rank).enumerate() {
        let factor = change.factors.iter().find(|(end, _)| row < *end).map_or(1.0, |(_, factor)| *factor);
        values.iter_mut().for_each(|value| *value *= factor);
    }
    if let Some(heads) = change.columns {
        if heads.count() != inputs {
            return Err(odd(format!("{} columns of value heads", heads.count())));
        }
        *a = a.chunks_exact(inputs).flat_map(|row| (0..inputs).map(|column| row[heads.source(column)])).collect();
    }
    if let Some(heads) = change.rows {
        if heads.count() != outputs {
            return Err(odd(format!("{} rows of value heads", heads.count())));
        }
        *b = (0..outputs).flat_map(|row| b[heads.source(row) * rank..][..rank].to_vec()).collect();
    }
    if arch.is_interleaved(tensor) {
        let head = model.head_dim;
        if head < 2 || !outputs.is_multiple_of(head) {
            return Err(odd(format!("whole heads of {head}")));
        }
        *b = (0..outputs)
            .flat_map(|row| {
                let (start, within) = (row / head * head, row % head);
                b[(start + within % 2 * (head / 2) + within / 2) * rank..][..rank].to_vec()
            })
            .collect();
    }
    Ok(())
}

/// Items of `width` bytes in llama.cpp's order of value heads.
fn reordered(bytes: &[u8], width: usize, heads: Heads) -> Vec<u8> {
    let item = |index: usize| &bytes[heads.source(index) * width..][..width];
    (0..heads.count()).flat_map(item).copied().collect()
}

/// Interleaves the two halves of each head; an item has `width` bytes.
fn interleave(bytes: &[u8], width: usize, head: usize) -> Vec<u8> {
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

/// Hugging Face's other names of sizes.
const OTHER_NAMES: [(&str, &str); 6] = [
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("intermediate_size", "n_inner"),
    ("intermediate_size", "block_ff_dim"),
    ("max_position_embeddings", "n_positions"),
];

fn size(model: &Model<'_>, key: &str) -> Option<u32> {
    let other = || OTHER_NAMES.iter().filter(|(name, _)| *name == key).find_map(|(_, other)| model.size(other));
    model.size(key).or_else(other)
}

fn required(model: &Model<'_>, key: &str) -> Result<u32, WeightsError> {
    size(model, key)
        .ok_or_else(|| WeightsError::malformed("config.json", format!("expected a whole number under {key:?}")))
}

/// The metadata with llama.cpp's keys.
fn metadata(arch: &Arch, model: &Model<'_>, exported: &Exported) -> Result<Vec<(String, Entry)>, WeightsError> {
    let rope = model.rotary();
    let number = |key: &str| model.number(key);
    // Gemma 3 has one set for the layers with full attention and one for the others.
    let rope = rope.map(|rope| rope.get("full_attention").unwrap_or(rope));
    let theta =
        rope.and_then(|rope| rope.get("rope_theta")).and_then(Value::as_f64).map(|n| n as f32).or(number("rope_theta"));
    let (hidden, heads) = (required(model, "hidden_size")?, required(model, "num_attention_heads")?);
    let head_dim = model.head_dim as u32;
    let mut out = vec![("general.architecture".to_owned(), Entry::Text(arch.gguf.to_owned()))];
    let is_own = |key: &str| exported.keys.iter().any(|(own, _)| *own == key);
    let mut add = |key: &str, entry: Entry| {
        if !is_own(key) {
            out.push((format!("{}.{key}", arch.gguf), entry));
        }
    };
    add("block_count", Entry::Number(required(model, "num_hidden_layers")?));
    add("context_length", Entry::Number(size(model, "max_position_embeddings").unwrap_or(2048)));
    add("embedding_length", Entry::Number(hidden));
    if !is_own("feed_forward_length") {
        add("feed_forward_length", Entry::Number(required(model, "intermediate_size")?));
    }
    add("attention.head_count", Entry::Number(heads));
    add("attention.head_count_kv", Entry::Number(size(model, "num_key_value_heads").unwrap_or(heads)));
    add("attention.key_length", Entry::Number(head_dim));
    add("attention.value_length", Entry::Number(head_dim));
    add("rope.dimension_count", Entry::Number(model.rotated(1.0) as u32));
    match number("layer_norm_eps").or(number("layer_norm_epsilon")) {
        Some(eps) => add("attention.layer_norm_epsilon", Entry::Float(eps)),
        None => add("attention.layer_norm_rms_epsilon", Entry::Float(number("rms_norm_eps").unwrap_or(1e-6))),
    }
    add("rope.freq_base", Entry::Float(theta.unwrap_or(10_000.0)));
    add("vocab_size", Entry::Number(required(model, "vocab_size")?));
    if !exported.own_rotary {
        rotary_scaling(rope, &mut add)?;
    }
    for (key, value) in &exported.keys {
        let entry = match value {
            Key::Whole(number) => Entry::Number(*number),
            Key::Float(number) => Entry::Float(*number),
            Key::Text(text) => Entry::Text((*text).to_owned()),
            Key::Wholes(list) => Entry::Numbers(list.clone()),
            Key::Flags(list) => Entry::Flags(list.clone()),
            Key::Absent => continue,
        };
        out.push((format!("{}.{key}", arch.gguf), entry));
    }
    Ok(out)
}

fn rotary_scaling(rope: Option<&Value>, add: &mut dyn FnMut(&str, Entry)) -> Result<(), WeightsError> {
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
    Ok(())
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
