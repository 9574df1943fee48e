//! Random checkpoints of known shapes with the same weights in two forms: a Hugging Face directory and a GGUF file.
//!
//! Speed does not depend on the values of the weights, so nothing is downloaded. Both forms are written in one pass
//! over one random sequence. Rejected: the peer's conversion script, because it needs Python and PyTorch.

use super::gguf::{Encoding, GgufWriter};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Increased when the written files change, so that older caches are replaced.
const VERSION: &str = "1";

/// The sizes of a model, with Hugging Face's names.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The name in tables and of the cache directory.
    pub name: &'static str,
    model_type: &'static str,
    class: &'static str,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    vocab_size: usize,
    rope_theta: f64,
    rms_norm_eps: f64,
    attention_bias: bool,
}

/// The compared shapes.
pub const SHAPES: &[Shape] = &[
    Shape {
        name: "llama-110m",
        model_type: "llama",
        class: "LlamaForCausalLM",
        hidden_size: 768,
        intermediate_size: 2048,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        num_key_value_heads: 12,
        vocab_size: 32000,
        rope_theta: 10000.0,
        rms_norm_eps: 1e-5,
        attention_bias: false,
    },
    Shape {
        name: "qwen2.5-0.5b",
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        hidden_size: 896,
        intermediate_size: 4864,
        num_hidden_layers: 24,
        num_attention_heads: 14,
        num_key_value_heads: 2,
        vocab_size: 151_936,
        rope_theta: 1_000_000.0,
        rms_norm_eps: 1e-6,
        attention_bias: true,
    },
];

const CONTEXT: usize = 2048;

/// A checkpoint in the cache.
pub struct Checkpoint {
    /// `config.json`, `model.safetensors` in bf16, `tokenizer.json`.
    pub directory: PathBuf,
    /// The same weights as GGUF: matrices Q4_0, the embedding Q8_0, vectors f32.
    pub gguf: PathBuf,
}

/// One tensor with both names.
struct Tensor {
    name: String,
    gguf_name: String,
    /// Sizes, outermost first.
    shape: Vec<usize>,
    encoding: Encoding,
    content: Content,
    /// Rows of each head, if GGUF interleaves the two rotary halves of this tensor.
    interleave: Option<usize>,
}

#[derive(Clone, Copy)]
enum Content {
    /// Values around 0, so that activations neither grow nor vanish over the layers.
    Matrix,
    /// Values around 1.
    Norm,
    Bias,
}

/// The checkpoint of `shape` in `cache`; it is made if it does not exist.
pub fn ensure(shape: &Shape, cache: &Path) -> Result<Checkpoint> {
    let directory = cache.join(shape.name);
    let checkpoint = Checkpoint { gguf: directory.join("model.gguf"), directory };
    let marker = checkpoint.directory.join("complete");
    if fs::read_to_string(&marker).is_ok_and(|version| version == VERSION) {
        return Ok(checkpoint);
    }
    eprintln!("Writing a random {} checkpoint to {}", shape.name, checkpoint.directory.display());
    fs::create_dir_all(&checkpoint.directory)
        .with_context(|| format!("{} could not be made", checkpoint.directory.display()))?;
    write_text(shape, &checkpoint.directory)?;
    write_weights(shape, &checkpoint)
        .with_context(|| format!("the weights could not be written to {}", checkpoint.directory.display()))?;
    fs::write(&marker, VERSION).with_context(|| format!("{} could not be written", marker.display()))?;
    Ok(checkpoint)
}

impl Shape {
    fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    fn tensors(&self) -> Vec<Tensor> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (d, self.num_key_value_heads * self.head_dim());
        // llama.cpp's `llama` rotates pairs of neighbouring rows, Hugging Face pairs rows of the two halves of a head;
        // for `qwen2` both do the latter.
        let interleave = (self.model_type == "llama").then(|| self.head_dim());
        let matrix = |name: String, gguf_name: String, rows: usize, k: usize, interleave: Option<usize>| Tensor {
            name,
            gguf_name,
            shape: vec![rows, k],
            encoding: Encoding::Q4_0,
            content: Content::Matrix,
            interleave,
        };
        let vector = |name: String, gguf_name: String, size: usize, content: Content| Tensor {
            name,
            gguf_name,
            shape: vec![size],
            encoding: Encoding::F32,
            content,
            interleave: None,
        };
        let embedding =
            matrix("model.embed_tokens.weight".into(), "token_embd.weight".into(), self.vocab_size, d, None);
        let mut tensors = vec![Tensor { encoding: Encoding::Q8_0, ..embedding }];
        for layer in 0..self.num_hidden_layers {
            let (hf, ggml) = (format!("model.layers.{layer}."), format!("blk.{layer}."));
            tensors.push(vector(
                format!("{hf}input_layernorm.weight"),
                format!("{ggml}attn_norm.weight"),
                d,
                Content::Norm,
            ));
            for (module, short, rows, interleave) in
                [("q", "q", q, interleave), ("k", "k", kv, interleave), ("v", "v", kv, None)]
            {
                tensors.push(matrix(
                    format!("{hf}self_attn.{module}_proj.weight"),
                    format!("{ggml}attn_{short}.weight"),
                    rows,
                    d,
                    interleave,
                ));
                if self.attention_bias {
                    tensors.push(vector(
                        format!("{hf}self_attn.{module}_proj.bias"),
                        format!("{ggml}attn_{short}.bias"),
                        rows,
                        Content::Bias,
                    ));
                }
            }
            tensors.push(matrix(
                format!("{hf}self_attn.o_proj.weight"),
                format!("{ggml}attn_output.weight"),
                d,
                q,
                None,
            ));
            tensors.push(vector(
                format!("{hf}post_attention_layernorm.weight"),
                format!("{ggml}ffn_norm.weight"),
                d,
                Content::Norm,
            ));
            for (module, rows, k) in [("gate", f, d), ("up", f, d), ("down", d, f)] {
                tensors.push(matrix(
                    format!("{hf}mlp.{module}_proj.weight"),
                    format!("{ggml}ffn_{module}.weight"),
                    rows,
                    k,
                    None,
                ));
            }
        }
        tensors.push(vector("model.norm.weight".into(), "output_norm.weight".into(), d, Content::Norm));
        tensors
    }

    fn config(&self) -> Value {
        json!({
            "architectures": [self.class],
            "model_type": self.model_type,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": CONTEXT,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": true,
            "bos_token_id": self.vocab_size - 1,
            "eos_token_id": self.vocab_size - 1,
            "torch_dtype": "bfloat16",
        })
    }

    /// The text of every token by id: the bytes, one merge, and names that no text contains.
    fn tokens(&self) -> Vec<String> {
        let mut tokens: Vec<String> = (0..=255u8).map(|byte| byte_char(byte).to_string()).collect();
        tokens.push("th".to_owned());
        tokens.extend((tokens.len()..self.vocab_size).map(|id| format!("<unused{id}>")));
        tokens
    }
}

/// The character of a byte in byte-level vocabularies.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + rank).unwrap_or('\u{fffd}')
}

fn write_text(shape: &Shape, directory: &Path) -> Result<()> {
    let vocab: Map<String, Value> =
        shape.tokens().into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let end = format!("<unused{}>", shape.vocab_size - 1);
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{"id": shape.vocab_size - 1, "content": end, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [["t", "h"]]},
    });
    let files = [
        ("config.json", shape.config()),
        ("tokenizer.json", tokenizer),
        (
            "tokenizer_config.json",
            json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "clean_up_tokenization_spaces": false}),
        ),
        ("generation_config.json", json!({"eos_token_id": shape.vocab_size - 1})),
    ];
    for (name, value) in files {
        fs::write(directory.join(name), value.to_string())
            .with_context(|| format!("{} could not be written", directory.join(name).display()))?;
    }
    Ok(())
}

fn write_weights(shape: &Shape, checkpoint: &Checkpoint) -> Result<()> {
    let tensors = shape.tensors();
    let mut safetensors =
        BufWriter::with_capacity(1 << 20, File::create(checkpoint.directory.join("model.safetensors"))?);
    let header = safetensors_header(&tensors);
    safetensors.write_all(&(header.len() as u64).to_le_bytes())?;
    safetensors.write_all(header.as_bytes())?;

    let mut gguf = GgufWriter::new(BufWriter::with_capacity(1 << 20, File::create(&checkpoint.gguf)?));
    describe(shape, &mut gguf);
    for tensor in &tensors {
        gguf.declare(&tensor.gguf_name, &tensor.shape, tensor.encoding);
    }
    gguf.write_header()?;

    let mut random = Random(0x5eed_0f0b_a7a9_0001);
    for tensor in &tensors {
        let values = tensor.values(&mut random);
        for value in &values {
            safetensors.write_all(&((value.to_bits() >> 16) as u16).to_le_bytes())?;
        }
        gguf.write_tensor(&tensor.interleaved(values), tensor.encoding)?;
    }
    safetensors.flush()?;
    gguf.finish()
}

/// The header of a bf16 safetensors file, padded to 8 bytes.
fn safetensors_header(tensors: &[Tensor]) -> String {
    let mut header = Map::new();
    let mut offset = 0usize;
    for tensor in tensors {
        let bytes = tensor.shape.iter().product::<usize>() * 2;
        header.insert(
            tensor.name.clone(),
            json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, offset + bytes]}),
        );
        offset += bytes;
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    text
}

fn describe(shape: &Shape, gguf: &mut GgufWriter<BufWriter<File>>) {
    let key = |name: &str| format!("{}.{name}", shape.model_type);
    gguf.text("general.architecture", shape.model_type);
    gguf.text("general.name", shape.name);
    gguf.number(&key("context_length"), CONTEXT as u32);
    gguf.number(&key("embedding_length"), shape.hidden_size as u32);
    gguf.number(&key("block_count"), shape.num_hidden_layers as u32);
    gguf.number(&key("feed_forward_length"), shape.intermediate_size as u32);
    gguf.number(&key("attention.head_count"), shape.num_attention_heads as u32);
    gguf.number(&key("attention.head_count_kv"), shape.num_key_value_heads as u32);
    gguf.number(&key("rope.dimension_count"), shape.head_dim() as u32);
    gguf.number(&key("vocab_size"), shape.vocab_size as u32);
    gguf.float(&key("attention.layer_norm_rms_epsilon"), shape.rms_norm_eps as f32);
    gguf.float(&key("rope.freq_base"), shape.rope_theta as f32);
    gguf.text("tokenizer.ggml.model", "gpt2");
    gguf.text("tokenizer.ggml.pre", "gpt-2");
    gguf.texts("tokenizer.ggml.tokens", &shape.tokens());
    gguf.texts("tokenizer.ggml.merges", &["t h".to_owned()]);
    gguf.number("tokenizer.ggml.bos_token_id", shape.vocab_size as u32 - 1);
    gguf.number("tokenizer.ggml.eos_token_id", shape.vocab_size as u32 - 1);
    gguf.flag("tokenizer.ggml.add_bos_token", false);
}

impl Tensor {
    /// Random values that bf16 represents exactly.
    fn values(&self, random: &mut Random) -> Vec<f32> {
        let count = self.shape.iter().product();
        let k = *self.shape.last().unwrap_or(&1) as f32;
        let (mean, deviation) = match self.content {
            Content::Matrix => (0.0, 1.0 / k.sqrt()),
            Content::Norm => (1.0, 0.1),
            Content::Bias => (0.0, 0.1),
        };
        let round = |value: f32| f32::from_bits(value.to_bits() & 0xffff_0000);
        std::iter::repeat_with(|| round(mean + deviation * random.normal())).take(count).collect()
    }

    /// The values, with the rows of every head in GGUF's order.
    fn interleaved(&self, values: Vec<f32>) -> Vec<f32> {
        let (Some(head), [rows, k]) = (self.interleave, self.shape.as_slice()) else { return values };
        let mut out = Vec::with_capacity(values.len());
        for row in 0..*rows {
            let (start, within) = (row / head * head, row % head);
            let from = start + within % 2 * (head / 2) + within / 2;
            out.extend_from_slice(&values[from * k..(from + 1) * k]);
        }
        out
    }
}

/// A fixed pseudo-random sequence (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Approximately normal, mean 0 and deviation 1: the sum of four 16-bit numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
        // Four uniform numbers of deviation 65536/sqrt(12) each.
        (sum as f32 - 131_070.0) / 37_837.2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_sizes_of_their_names() {
        let parameters =
            |shape: &Shape| shape.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum::<usize>();
        assert_eq!(parameters(&SHAPES[0]), 109_529_856);
        assert_eq!(parameters(&SHAPES[1]), 494_032_768);
    }

    #[test]
    fn byte_characters_are_the_usual_ones() {
        assert_eq!(
            (byte_char(b' '), byte_char(b'\n'), byte_char(b'a'), byte_char(0), byte_char(0xAD)),
            ('Ġ', 'Ċ', 'a', 'Ā', 'Ń')
        );
        let all: std::collections::BTreeSet<char> = (0..=255).map(byte_char).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn random_values_are_normal() {
        let mut random = Random(1);
        let values: Vec<f64> = (0..100_000).map(|_| f64::from(random.normal())).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }

    #[test]
    fn heads_are_interleaved() {
        let tensor = Tensor {
            name: String::new(),
            gguf_name: String::new(),
            shape: vec![8, 1],
            encoding: Encoding::Q4_0,
            content: Content::Matrix,
            interleave: Some(4),
        };
        assert_eq!(
            tensor.interleaved((0..8).map(|row| row as f32).collect()),
            [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
        );
    }
}
