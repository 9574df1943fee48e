//! Loading a checkpoint of more than 2 GB: host memory beyond the device's buffers stays small. On a software device
//! those buffers are host memory too and are subtracted.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::rc::Rc;

use bayan_generate::{Engine, EngineOptions};
use bayan_gpu::{Gpu, GpuOptions, block_on};
use bayan_weights::{Checkpoint, DirectorySource, Policy, format_by_name};
use serde_json::{Map, Value, json};

/// The limit of host memory beyond the device's buffers, whatever the checkpoint's size.
const MOST_BYTES: u64 = 300 << 20;

const LAYERS: usize = 16;

fn shapes() -> Vec<(String, [u64; 2])> {
    let (d, f, v) = (2048, 8192, 32000);
    let mut list = vec![("model.embed_tokens.weight".to_string(), [v, d]), ("lm_head.weight".to_string(), [v, d])];
    for layer in 0..LAYERS {
        let parts = [("q", d, d), ("k", d, d), ("v", d, d), ("o", d, d)]
            .map(|(name, rows, columns)| (format!("self_attn.{name}_proj"), [rows, columns]));
        let mlp = [("gate", f, d), ("up", f, d), ("down", d, f)]
            .map(|(name, rows, columns)| (format!("mlp.{name}_proj"), [rows, columns]));
        list.extend(
            parts.into_iter().chain(mlp).map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)),
        );
    }
    list
}

/// Random f16 matrices and norms of ones, as one safetensors file; its size in bytes.
fn write(directory: &Path) -> u64 {
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": LAYERS,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "torch_dtype": "float16",
        "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu"});
    std::fs::write(directory.join("config.json"), config.to_string()).expect("a config");
    let norms = (0..LAYERS).flat_map(|layer| {
        ["input_layernorm", "post_attention_layernorm"].map(|norm| format!("model.layers.{layer}.{norm}.weight"))
    });
    let norms: Vec<String> = norms.chain(["model.norm.weight".to_string()]).collect();
    let (mut header, mut end) = (Map::new(), 0u64);
    for (name, shape) in shapes() {
        let begin = end;
        end += shape[0] * shape[1] * 2;
        header.insert(name, json!({"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}));
    }
    for name in &norms {
        header.insert(name.clone(), json!({"dtype": "F16", "shape": [2048], "data_offsets": [end, end + 4096]}));
        end += 4096;
    }
    let header = Value::Object(header).to_string();
    let mut file =
        BufWriter::with_capacity(1 << 20, File::create(directory.join("model.safetensors")).expect("a file"));
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("room");
    file.write_all(header.as_bytes()).expect("room");
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut chunk = vec![0u8; 1 << 20];
    let mut left = shapes().iter().map(|(_, shape)| shape[0] * shape[1] * 2).sum::<u64>();
    while left > 0 {
        for word in chunk.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Random signs and mantissas with the exponent of numbers from 0.0156 to 0.0312.
            word.copy_from_slice(&(state & 0x83ff_83ff_83ff_83ff | 0x2400_2400_2400_2400).to_le_bytes());
        }
        let count = left.min(chunk.len() as u64);
        file.write_all(&chunk[..count as usize]).expect("room for 2 GB in the temporary directory");
        left -= count;
    }
    let ones: Vec<u8> = [0x00, 0x3c].repeat(2048);
    norms.iter().for_each(|_| file.write_all(&ones).expect("room"));
    file.flush().expect("room");
    end
}

/// A line of /proc/self/status in bytes.
fn status(line: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    found.expect("a size") * 1024
}

/// Opens a checkpoint and measures the host memory beyond the device's buffers.
fn open(checkpoint: &Checkpoint, gpu: &Gpu, format: &str) -> (Engine, u64) {
    // Resets the high-water mark.
    std::fs::write("/proc/self/clear_refs", "5").expect("/proc");
    let (before, device_before) = (status("VmRSS:"), gpu.allocated_bytes());
    let options = EngineOptions {
        context: Some(256),
        policy: Some(Policy::for_format(format_by_name(format).expect("a format"))),
        ..Default::default()
    };
    let engine = block_on(Engine::open(checkpoint, gpu, &options, &mut |_, _| {})).expect("an engine");
    let (peak, device) = (status("VmHWM:"), gpu.allocated_bytes() - device_before);
    let beyond = peak.saturating_sub(before).saturating_sub(if gpu.capabilities().software { device } else { 0 });
    println!("{format}: device {} MiB, host beyond the device {} MiB", device >> 20, beyond >> 20);
    (engine, beyond)
}

fn checkpoint(directory: &Path) -> Checkpoint {
    let source = Rc::new(DirectorySource::new(directory).expect("a directory"));
    block_on(Checkpoint::open(source)).expect("a checkpoint")
}

#[test]
fn a_large_checkpoint_needs_little_of_the_host() {
    let directory = tempfile::tempdir().expect("a directory");
    let file_bytes = write(directory.path());
    assert!(file_bytes > 2 << 30, "{file_bytes}");
    let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    let checkpoint = checkpoint(directory.path());
    for format in ["f16", "q8_0"] {
        let (_engine, beyond) = open(&checkpoint, &gpu, format);
        assert!(beyond <= MOST_BYTES, "{format}: {} MiB beyond the device's", beyond >> 20);
    }
}

/// Two layers of LLaMA-3 70B at the end of a sparse file of 141 GB, behind as many bytes as the other 78 have. A model
/// that left out tensors of its file would be refused, so these bytes are a tensor that no model reads.
#[test]
fn two_layers_of_70b_come_from_a_sparse_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let (d, f, v, kv) = (8192u64, 28672u64, 128_256u64, 1024u64);
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": d, "intermediate_size": f, "num_hidden_layers": 2,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": v, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
            "torch_dtype": "bfloat16", "rope_theta": 500000.0, "tie_word_embeddings": false, "hidden_act": "silu"});
    std::fs::write(directory.path().join("config.json"), config.to_string()).expect("a config");
    let layer_rows = 2 * d + 2 * kv + 3 * f + 2; // of d numbers
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![v, d]),
        ("model.rotary_emb.inv_freq".to_string(), vec![78 * layer_rows, d]),
        ("lm_head.weight".to_string(), vec![v, d]),
        ("model.norm.weight".to_string(), vec![d]),
    ];
    for layer in 0..2 {
        let parts = [
            ("self_attn.q_proj", vec![d, d]),
            ("self_attn.k_proj", vec![kv, d]),
            ("self_attn.v_proj", vec![kv, d]),
            ("self_attn.o_proj", vec![d, d]),
        ];
        let mlp = [("mlp.gate_proj", vec![f, d]), ("mlp.up_proj", vec![f, d]), ("mlp.down_proj", vec![d, f])];
        let norms = [("input_layernorm", vec![d]), ("post_attention_layernorm", vec![d])];
        tensors.extend(
            parts
                .into_iter()
                .chain(mlp)
                .chain(norms)
                .map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)),
        );
    }
    let (mut header, mut end) = (Map::new(), 0u64);
    for (name, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<u64>() * 2;
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(directory.path().join("model.safetensors")).expect("a file");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("room");
    file.write_all(header.as_bytes()).expect("room");
    file.set_len(8 + header.len() as u64 + end).expect("a sparse file");
    assert!(end > 140_000_000_000, "{end}");
    let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    let (engine, beyond) = open(&checkpoint(directory.path()), &gpu, "q4_0");
    assert_eq!(engine.decoder().sizes().num_hidden_layers, 2);
    assert!(beyond <= MOST_BYTES, "{} MiB beyond the device's", beyond >> 20);
}
