//! A checkpoint as a GGUF file, the reverse of what the reader does: names, the order of rows, norms, configuration and
//! tokenizer.

use super::blocks::BlockType;
use super::names::Arch;
use super::writer::{Declared, Entry, GgufWriter, block_type, blocks_of};
use crate::checkpoint::{Checkpoint, TensorEntry};
use crate::error::WeightsError;
use crate::formats::{F16, F32, Format, Planes, Unrepresentable};
use serde_json::Value;
use std::path::Path;

const CHUNK_BYTES: usize = 4 << 20;
/// Architectures whose configuration llama.cpp's metadata can hold and that are checked against it.
const EXPORTED: [&str; 7] = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"];

/// What becomes of one tensor.
struct Plan<'a> {
    entry: &'a TensorEntry,
    declared: Declared,
    format: &'static dyn Format,
    interleaved: bool,
    plus_one: bool,
    /// Multiplies the values.
    factor: f32,
}

/// Writes `checkpoint` to `target`, with the tokenizer's entries that
/// [`tokenizer_metadata`](super::vocabulary::metadata) made.
///
/// Errors: an architecture that is not exported, tensors that it does not have, those of reading and writing.
pub async fn export(
    checkpoint: &Checkpoint,
    target: &Path,
    tokenizer: Vec<(String, Entry)>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), WeightsError> {
    let config = checkpoint.config();
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("none");
    let unsupported = |what: String, remedy: String| WeightsError::Unsupported { what, remedy };
    let arch = Arch::by_model_type(model_type).filter(|_| EXPORTED.contains(&model_type));
    let arch = arch.ok_or_else(|| {
        unsupported(format!("writing a {model_type} model as GGUF"), format!("written are {}", EXPORTED.join(", ")))
    })?;
    let (head_dim, mut metadata) = metadata(arch, config)?;
    let query_factor = query_factor(arch, config, head_dim);
    metadata.extend(tokenizer);
    let mut plans = Vec::new();
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
                "this model has parts that llama.cpp's form of it has not".to_owned(),
            )
        })?;
        plans.push(plan(arch, entry, name, query_factor));
    }
    let mut declared: Vec<Declared> = plans.iter().map(|plan| plan.declared.clone()).collect();
    let factors = rope_factors(config, head_dim);
    if let Some(factors) = &factors {
        declared.push(Declared {
            name: "rope_freqs.weight".to_owned(),
            shape: vec![factors.len()],
            kind: BlockType::F32,
        });
    }
    let mut writer = GgufWriter::create(target, &metadata, declared)?;
    let (mut done, total) = (0, plans.iter().map(|plan| plan.entry.count()).sum());
    for plan in &plans {
        let (rows, step) = (plan.entry.rows(), plan.entry.rows_per_chunk(&F32, CHUNK_BYTES));
        let step = if plan.interleaved && rows > 1 { (step / head_dim).max(1) * head_dim } else { step };
        for start in (0..rows).step_by(step) {
            let part = start..rows.min(start + step);
            done += (part.len() * plan.entry.k()) as u64;
            writer.write(&plan.bytes(checkpoint, part, head_dim).await?)?;
            progress(done, total);
        }
    }
    if let Some(factors) = factors {
        writer.write(&factors.iter().flat_map(|factor| factor.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    writer.finish()
}

fn plan<'a>(arch: &Arch, entry: &'a TensorEntry, name: String, query_factor: f32) -> Plan<'a> {
    let native = entry.loaded_format(None);
    // Vectors are f32 in GGUF; what has no equal block type goes out as f16.
    let kind = if entry.shape.len() < 2 { BlockType::F32 } else { block_type(native, entry.k()) };
    let format: &'static dyn Format = match kind {
        BlockType::F32 => &F32,
        BlockType::F16 => &F16,
        _ => native,
    };
    Plan {
        interleaved: arch.is_interleaved(&entry.name),
        plus_one: arch.norm_plus_one && entry.name.ends_with("norm.weight"),
        factor: if entry.name.ends_with(if arch.gguf == "gemma3" { ".q_norm.weight" } else { ".q_proj.weight" }) {
            query_factor
        } else {
            1.0
        },
        declared: Declared { name, shape: entry.shape.clone(), kind },
        entry,
        format,
    }
}

impl Plan<'_> {
    /// Rows times the factor; of plain numbers only, since blocks would be quantized anew.
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
        let fail = |error: Unrepresentable| WeightsError::Unrepresentable {
            tensor: self.entry.name.clone(),
            index: error.index as u64,
            value: error.value,
            format: self.format.name(),
        };
        planes.push_rows(&values, None).map_err(fail)?;
        Ok(planes)
    }

    async fn bytes(
        &self,
        checkpoint: &Checkpoint,
        rows: std::ops::Range<usize>,
        head: usize,
    ) -> Result<Vec<u8>, WeightsError> {
        let count = rows.len();
        let bytes = if self.plus_one {
            checkpoint
                .read_rows_f32(&self.entry.name, rows)
                .await?
                .iter()
                .flat_map(|value| ((value + 1.0) * self.factor).to_le_bytes())
                .collect()
        } else if self.factor != 1.0 {
            blocks_of(&self.scaled(checkpoint, rows).await?)
        } else {
            blocks_of(&checkpoint.read_planes(&self.entry.name, rows, self.format).await?)
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

/// Items of `width` bytes: the halves of each head, one from each in turn.
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

/// The head size and llama.cpp's keys.
fn metadata(arch: &Arch, config: &Value) -> Result<(usize, Vec<(String, Entry)>), WeightsError> {
    let size = |key: &str| config.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let need = |key: &str| {
        size(key)
            .ok_or_else(|| WeightsError::malformed("config.json", format!("expected a whole number under {key:?}")))
    };
    let rope = config.get("rope_parameters").or(config.get("rope_scaling")).filter(|value| value.is_object());
    let number = |key: &str| config.get(key).and_then(Value::as_f64).map(|n| n as f32);
    // Gemma 3 has one set for the layers that see everything and one for the others.
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
    add("attention.layer_norm_rms_epsilon", Entry::Float(number("rms_norm_eps").unwrap_or(1e-6)));
    add("rope.freq_base", Entry::Float(theta.unwrap_or(10_000.0)));
    add("vocab_size", Entry::Number(need("vocab_size")?));
    if arch.gguf.starts_with("gemma") {
        for (key, from) in [
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ] {
            number(from).into_iter().for_each(|cap| add(key, Entry::Float(cap)));
        }
        size("sliding_window").into_iter().for_each(|window| add("attention.sliding_window", Entry::Number(window)));
    }
    if arch.gguf == "gemma3" {
        let local =
            config.pointer("/rope_parameters/sliding_attention/rope_theta").and_then(Value::as_f64).map(|n| n as f32);
        add("rope.freq_base_swa", Entry::Float(local.or(number("rope_local_base_freq")).unwrap_or(10_000.0)));
        add("attention.sliding_window_pattern", Entry::Number(window_pattern(config)?));
    }
    let kind =
        rope.and_then(|rope| rope.get("rope_type").or(rope.get("type"))).and_then(Value::as_str).unwrap_or("default");
    let of = |key: &str| rope.and_then(|rope| rope.get(key)).and_then(Value::as_f64);
    if matches!(kind, "linear" | "yarn") {
        add("rope.scaling.type", Entry::Text(kind.to_owned()));
        add("rope.scaling.factor", Entry::Float(of("factor").unwrap_or(1.0) as f32));
        of("original_max_position_embeddings")
            .into_iter()
            .for_each(|n| add("rope.scaling.original_context_length", Entry::Number(n as u32)));
    }
    Ok((head_dim as usize, out))
}

/// Every how many layers one sees everything: by the number, or by a list of layers that follows one.
fn window_pattern(config: &Value) -> Result<u32, WeightsError> {
    let told = ["sliding_window_pattern", "_sliding_window_pattern"].iter().find_map(|key| config.get(*key)?.as_u64());
    let told = told.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    let Some(types) = config.get("layer_types").and_then(Value::as_array) else { return Ok(told.unwrap_or(6)) };
    let full: Vec<bool> = types.iter().map(|kind| kind.as_str() == Some("full_attention")).collect();
    let follows = |pattern: usize| full.iter().enumerate().all(|(layer, full)| *full == ((layer + 1) % pattern == 0));
    let found = (1..=full.len() + 1).find(|&pattern| follows(pattern)).and_then(|pattern| u32::try_from(pattern).ok());
    found.ok_or_else(|| WeightsError::Unsupported {
        what: format!("writing layer_types {types:?} as GGUF"),
        remedy: "llama.cpp's form of this architecture has full attention on every n-th layer".to_owned(),
    })
}

/// What queries must be multiplied by, since llama.cpp takes the scale of Gemma's scores from the head size (but for
/// the models of 27B): in their norm, where they have one, or in their projection.
fn query_factor(arch: &Arch, config: &Value, head_dim: usize) -> f32 {
    let of = |key: &str| config.get(key).and_then(Value::as_u64).unwrap_or(0);
    let layers_of_27b = match arch.gguf {
        "gemma2" => 46,
        "gemma3" => 62,
        _ => return 1.0,
    };
    let Some(scalar) = config.get("query_pre_attn_scalar").and_then(Value::as_f64).filter(|scalar| *scalar > 0.0)
    else {
        return 1.0;
    };
    let is_27b = of("num_hidden_layers") == layers_of_27b;
    let built_in =
        if is_27b { of("hidden_size") as f64 / of("num_attention_heads").max(1) as f64 } else { head_dim as f64 };
    (built_in / scalar).sqrt() as f32
}

/// LLaMA 3's scaling as a divisor of each frequency, which is how GGUF holds it.
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
