//! `--model random:SHAPE`: a checkpoint of a known shape, or of any `config.json`, with random weights that are
//! generated while they are read.
//!
//! Speed and memory do not depend on the values of the weights, so that every model can be measured on every device
//! without a download or a file. Each byte is a function of its offset, so that any range can be read at any time. A
//! matrix repeats its first [`ROWS`] rows with their columns rotated by whole blocks, so that only those are quantized;
//! quantizing them all took 75 s for 1.2 billion weights. Rejected: files on disk, because an 8B model takes 16 GB.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bayan_models::DescribedTensor;
use bayan_weights::{Format, LocalFuture, Planes, Source, WeightsError};
use serde_json::{Map, Value, json};

/// The prefix of a shape's name.
pub const PREFIX: &str = "random:";

/// Name, model_type, hidden, intermediate, layers, heads, key-value heads, head_dim, vocabulary, tied head, rope_theta.
type Row = (&'static str, &'static str, usize, usize, usize, usize, usize, usize, usize, bool, f64);

const SHAPES: &[Row] = &[
    ("llama-110m", "llama", 768, 2048, 12, 12, 12, 64, 32000, true, 1e4),
    ("qwen2.5-0.5b", "qwen2", 896, 4864, 24, 14, 2, 64, 151_936, true, 1e6),
    ("qwen3-0.6b", "qwen3", 1024, 3072, 28, 16, 8, 128, 151_936, true, 1e6),
    ("qwen3-1.7b", "qwen3", 2048, 6144, 28, 16, 8, 128, 151_936, true, 1e6),
    ("llama3.2-1b", "llama", 2048, 8192, 16, 32, 8, 64, 128_256, true, 5e5),
    ("allam-7b", "llama", 4096, 11008, 32, 32, 32, 128, 64000, false, 1e4),
    ("llama3-8b", "llama", 4096, 14336, 32, 32, 8, 128, 128_256, false, 5e5),
    ("acegpt-v2-32b", "llama", 5120, 27392, 64, 40, 8, 128, 152_064, false, 1e6),
    ("llama3-70b", "llama", 8192, 28672, 80, 64, 8, 128, 128_256, false, 5e5),
];

/// Largest `config.json` in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Rows after which a matrix repeats, rotated.
const ROWS: usize = 256;

/// Columns by which a rotation shifts: a multiple of every format's block, so that blocks stay whole.
const BLOCK: usize = 256;

/// A tensor of the generated file.
#[derive(Debug, Clone, Copy)]
struct Generated {
    /// Its place among the tensors, from which its rotations begin.
    number: usize,
    /// Its first byte after the header.
    begin: u64,
    /// Sizes: a vector is one row.
    rows: usize,
    k: usize,
}

impl Generated {
    /// The row of the first `ROWS` that a row repeats, and the number of blocks by which it is rotated to the left.
    /// Rows that are no whole blocks are not repeated.
    fn repeats(&self, row: usize) -> (usize, usize) {
        if !self.k.is_multiple_of(BLOCK) {
            return (row, 0);
        }
        (row % ROWS, (self.number * 5 + row / ROWS) % (self.k / BLOCK).max(1))
    }

    /// The bytes of one row.
    fn row(&self, row: usize) -> Vec<u8> {
        let (repeated, shift) = self.repeats(row);
        let mut bytes = vec![0; 2 * self.k];
        fill(&mut bytes, (2 * self.k * repeated) as u64);
        bytes.rotate_left(2 * BLOCK * shift);
        bytes
    }
}

/// The files of a generated checkpoint.
pub struct RandomSource {
    name: String,
    files: BTreeMap<&'static str, Vec<u8>>,
    /// The safetensors header of the weights' file.
    header: Vec<u8>,
    weights_bytes: u64,
    /// In the order of the file.
    tensors: Vec<Generated>,
    by_name: HashMap<String, usize>,
    /// For each format and width, the rows that all matrices repeat.
    repeated: RefCell<HashMap<(&'static str, usize), Planes>>,
}

const WEIGHTS: &str = "model.safetensors";

impl RandomSource {
    /// The checkpoint with this name, or of a `config.json` or its directory.
    ///
    /// # Errors
    /// The name is neither a known shape nor a readable configuration, or no architecture accepts the configuration.
    pub fn new(name: &str) -> Result<RandomSource> {
        let config = match SHAPES.iter().find(|row| row.0 == name) {
            Some(&(_, model_type, d, f, layers, heads, kv, head_dim, v, tied, theta)) => json!({
                "model_type": model_type, "hidden_size": d, "intermediate_size": f, "num_hidden_layers": layers,
                "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head_dim, "vocab_size": v,
                "tie_word_embeddings": tied, "rope_theta": theta, "rms_norm_eps": 1e-5,
                "max_position_embeddings": 131_072, "hidden_act": "silu", "torch_dtype": "bfloat16",
            }),
            None => read_config(name)?,
        };
        let described = bayan_models::describe(&config).with_context(|| format!("{PREFIX}{name}"))?;
        let names: Vec<String> = described.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        let (header, tensors, body_bytes) = header(described.tensors).with_context(|| format!("{PREFIX}{name}"))?;
        let by_name = names.into_iter().zip(0..).collect();
        let files = [
            ("config.json", config.to_string().into_bytes()),
            ("tokenizer.json", tokenizer().to_string().into_bytes()),
        ];
        let weights_bytes = header.len() as u64 + body_bytes;
        let (name, files, repeated) = (name.to_owned(), files.into(), RefCell::default());
        Ok(RandomSource { name, files, weights_bytes, header, tensors, by_name, repeated })
    }

    fn read_now(&self, file: &str, offset: u64, length: usize) -> Result<Vec<u8>, WeightsError> {
        let size = if file == WEIGHTS {
            self.weights_bytes
        } else {
            self.files.get(file).map_or(0, |bytes| bytes.len() as u64)
        };
        if offset.checked_add(length as u64).is_none_or(|end| end > size) {
            let reason = format!("asked for {length} bytes at offset {offset}, the file has {size}");
            return Err(WeightsError::Source { file: file.to_owned(), place: self.describe(), reason });
        }
        if file != WEIGHTS {
            return Ok(self.files[file][offset as usize..][..length].to_vec());
        }
        let mut bytes = vec![0; length];
        let known = (self.header.len() as u64).saturating_sub(offset).min(length as u64) as usize;
        if known > 0 {
            bytes[..known].copy_from_slice(&self.header[offset as usize..][..known]);
        }
        self.generate(&mut bytes[known..], (offset + known as u64).saturating_sub(self.header.len() as u64));
        Ok(bytes)
    }

    /// Fills `bytes` with the weights from this offset after the header on.
    fn generate(&self, bytes: &mut [u8], offset: u64) {
        let mut done = 0;
        let first = self.tensors.partition_point(|tensor| tensor.begin <= offset).saturating_sub(1);
        for tensor in &self.tensors[first..] {
            let row_bytes = 2 * tensor.k as u64;
            while done < bytes.len() {
                let inside = (offset + done as u64).saturating_sub(tensor.begin);
                let row = (inside / row_bytes.max(1)) as usize;
                if row >= tensor.rows || row_bytes == 0 {
                    break;
                }
                let row_data = tensor.row(row);
                let rest = &row_data[(inside % row_bytes) as usize..];
                let taken = rest.len().min(bytes.len() - done);
                bytes[done..done + taken].copy_from_slice(&rest[..taken]);
                done += taken;
            }
        }
    }

    /// The planes of the rows that all matrices of a width repeat.
    fn repeated(&self, format: &'static dyn Format, k: usize) -> Option<Planes> {
        let tensor = Generated { number: 0, begin: 0, rows: ROWS, k };
        let bytes: Vec<u8> = (0..ROWS).flat_map(|row| tensor.row(row)).collect();
        let values: Vec<f32> =
            bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)).collect();
        let mut planes = Planes::new(format, k);
        planes.push_rows(&values, None).ok().map(|()| planes)
    }
}

impl Source for RandomSource {
    fn describe(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    fn made_planes(&self, tensor: &str, rows: Range<usize>, format: &'static dyn Format) -> Option<Planes> {
        let tensor = &self.tensors[*self.by_name.get(tensor)?];
        if !tensor.k.is_multiple_of(BLOCK) || rows.end > tensor.rows {
            return None;
        }
        let mut repeated = self.repeated.borrow_mut();
        let from = match repeated.entry((format.name(), tensor.k)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.repeated(format, tensor.k)?),
        };
        let mut planes = Planes::new(format, tensor.k);
        planes.rows = rows.len();
        for (plane, (to, from)) in planes.bytes.iter_mut().zip(&from.bytes).enumerate() {
            let (size, block) = (format.row_bytes(plane, tensor.k) as usize, format.row_bytes(plane, BLOCK) as usize);
            to.reserve(size * rows.len());
            for row in rows.clone() {
                let (row, shift) = tensor.repeats(row);
                let (last, first) = from[row * size..(row + 1) * size].split_at(block * shift);
                to.extend_from_slice(first);
                to.extend_from_slice(last);
            }
        }
        Some(planes)
    }

    fn size<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<u64>, WeightsError>> {
        let size = if file == WEIGHTS {
            Some(self.weights_bytes)
        } else {
            self.files.get(file).map(|bytes| bytes.len() as u64)
        };
        Box::pin(std::future::ready(Ok(size)))
    }

    fn read<'a>(&'a self, file: &'a str, offset: u64, length: usize) -> LocalFuture<'a, Result<Vec<u8>, WeightsError>> {
        Box::pin(std::future::ready(self.read_now(file, offset, length)))
    }
}

/// Reads the configuration from a file or a directory.
fn read_config(path: &str) -> Result<Value> {
    let path = Path::new(path);
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let Ok(about) = std::fs::metadata(&file) else {
        let shapes = SHAPES.iter().map(|row| row.0).collect::<Vec<_>>().join(", ");
        bail!("--model {PREFIX}{}: expected a config.json or its directory, or one of {shapes}", path.display());
    };
    if about.len() > MAX_CONFIG_BYTES {
        bail!("{}: expected at most {MAX_CONFIG_BYTES} bytes of configuration, got {}", file.display(), about.len());
    }
    let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut config: Value = bayan_weights::json::parse(&file.display().to_string(), &text)?;
    // Generated weights are not quantized.
    if let Some(fields) = config.as_object_mut() {
        fields.remove("quantization_config");
    }
    Ok(config)
}

/// The safetensors header, the tensors, and the number of bytes that follow the header. All tensors are bf16.
fn header(tensors: Vec<DescribedTensor>) -> Result<(Vec<u8>, Vec<Generated>, u64)> {
    let (mut entries, mut generated, mut end) = (Map::new(), Vec::new(), 0u64);
    for DescribedTensor { name, shape, .. } in tensors {
        let begin = end;
        let count = shape.iter().try_fold(1u64, |count, &size| count.checked_mul(size as u64));
        let sum = count.and_then(|count| count.checked_mul(2)).and_then(|bytes| end.checked_add(bytes));
        end = sum.with_context(|| format!("tensor {name:?}: the sizes {shape:?} overflow; correct config.json"))?;
        let k = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).product();
        generated.push(Generated { number: generated.len(), begin, rows, k });
        entries.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}));
    }
    let mut text = Value::Object(entries).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    Ok((bytes, generated, end))
}

/// Fills `bytes` with random bf16 numbers between 0.0156 and 0.0625 of either sign, from byte `offset` of the sequence
/// on.
fn fill(bytes: &mut [u8], offset: u64) {
    let word = |index: u64| {
        // SplitMix64 (Steele et al., 2014).
        let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) & 0x80ff_80ff_80ff_80ff) + 0x3c80_3c80_3c80_3c80).to_le_bytes()
    };
    let skip = (offset % 8) as usize;
    let first = word(offset / 8);
    let (head, rest) = bytes.split_at_mut(if skip == 0 { 0 } else { (8 - skip).min(bytes.len()) });
    head.copy_from_slice(&first[skip..][..head.len()]);
    let start = offset / 8 + u64::from(skip > 0);
    for (index, chunk) in rest.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&word(start + index as u64)[..chunk.len()]);
    }
}

/// A tokenizer whose tokens are bytes, because random weights have no vocabulary.
fn tokenizer() -> Value {
    let vocab: Map<String, Value> = (0..=255u32).map(|byte| (format!("<0x{byte:02X}>"), byte.into())).collect();
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "unk_token": "<0x00>", "fuse_unk": false},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bayan_gpu::block_on;
    use bayan_weights::Checkpoint;
    use std::rc::Rc;

    #[test]
    fn any_range_has_the_bytes_of_the_whole() {
        let source = RandomSource::new("llama-110m").expect("a shape");
        let begin = source.header.len() as u64 - 5;
        let whole = source.read_now(WEIGHTS, begin, 300).expect("bytes");
        for (offset, length) in [(0, 1), (3, 2), (4, 9), (5, 8), (6, 1), (13, 100), (21, 279)] {
            assert_eq!(
                source.read_now(WEIGHTS, begin + offset as u64, length).expect("bytes"),
                whole[offset..offset + length],
                "{offset}+{length}"
            );
        }
        assert!(source.read_now(WEIGHTS, source.weights_bytes - 1, 2).is_err());
    }

    #[test]
    fn every_shape_is_a_checkpoint_of_finite_small_numbers() {
        for row in SHAPES {
            let checkpoint =
                block_on(Checkpoint::open(Rc::new(RandomSource::new(row.0).expect("a shape")))).expect("a checkpoint");
            let sizes = bayan_models::sizes(&checkpoint).expect("sizes");
            assert_eq!((sizes.hidden_size, sizes.num_hidden_layers), (row.2, row.4), "{}", row.0);
            let values = block_on(checkpoint.read_rows_f32("model.layers.1.mlp.down_proj.weight", 3..5)).expect("rows");
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            assert!(
                values.iter().all(|v| (0.0156..=0.0626).contains(&v.abs())) && mean.abs() < 0.01,
                "{}: mean {mean}",
                row.0
            );
        }
    }

    #[test]
    fn made_planes_are_those_of_the_bytes() {
        let checkpoint = block_on(Checkpoint::open(Rc::new(RandomSource::new("llama-110m").expect("a shape"))))
            .expect("a checkpoint");
        let name = "model.layers.1.mlp.down_proj.weight";
        for format in bayan_weights::FORMATS {
            let made = block_on(checkpoint.read_planes(name, 250..260, *format)).expect("planes");
            let mut planes = Planes::new(*format, 2048);
            let values = block_on(checkpoint.read_rows_f32(name, 250..260)).expect("rows");
            planes.push_rows(&values, None).expect("finite numbers");
            assert_eq!((made.rows, &made.bytes), (planes.rows, &planes.bytes), "{}", format.name());
        }
        let rows = block_on(checkpoint.read_rows_f32(name, 0..768)).expect("rows");
        let mut rows: Vec<&[f32]> = rows.chunks_exact(2048).collect();
        rows.sort_by(|a, b| a.partial_cmp(b).expect("finite numbers"));
        assert!(rows.windows(2).all(|pair| pair[0] != pair[1]), "rotated rows differ");
    }

    #[test]
    fn every_fixture_s_configuration_is_a_model_that_opens() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
        let mut count = 0;
        for entry in std::fs::read_dir(fixtures).expect("fixtures") {
            let path = entry.expect("an entry").path();
            let source = RandomSource::new(path.to_str().expect("a name")).expect("a source");
            let checkpoint = block_on(Checkpoint::open(Rc::new(source))).expect("a checkpoint");
            let options = bayan_models::LoadOptions { context: 16 };
            let decoder = block_on(bayan_models::open(&checkpoint, None, &options, None, &mut |_, _| {}));
            assert!(decoder.is_ok(), "{}: {:?}", path.display(), decoder.err());
            count += 1;
        }
        assert!(count >= bayan_models::supported().len());
        let error = RandomSource::new("no-such-shape").err().expect("an error").to_string();
        assert!(error.contains("llama-110m") && error.contains("config.json"), "{error}");
    }
}
