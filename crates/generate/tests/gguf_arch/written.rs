//! GGUF files that `export` writes: compared with transformers' results, written again, and refused where llama.cpp
//! would compute something else.

use super::{fixture, fixtures, hold, open};

use std::path::Path;
use std::rc::Rc;

use bayan_generate::{Engine, EngineOptions};
use bayan_gpu::{Gpu, GpuOptions, block_on};
use bayan_models::CacheFormat;
use bayan_tensor::nmse;
use bayan_weights::gguf::export::export;
use bayan_weights::{Checkpoint, MemorySource, Policy, WriteOptions, format_by_name, quantize_checkpoint};
use serde_json::{Value, json};

/// A fixture in `format`, written as a GGUF file and opened again.
fn exported(name: &str, format: &str, folder: &Path) -> Checkpoint {
    let policy = Policy::for_format(format_by_name(format).unwrap());
    let (directory, file) = (folder.join(format!("{name}-{format}")), folder.join(format!("{name}-{format}.gguf")));
    let options = WriteOptions::default();
    block_on(quantize_checkpoint(&fixture(name), &directory, &policy, &options, &mut |_| {})).unwrap();
    block_on(export(&open(&directory), &file, Vec::new(), &mut |_, _| {})).unwrap_or_else(|e| panic!("{name}: {e}"));
    open(&file)
}

/// Written in f32, files give what the checkpoint gives. llama.cpp gave the same of these files (docs/quality.md).
#[test]
fn written_files_give_the_logits_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "cohere_plain",
        "cohere2_even",
        "falcon_h1",
        "falcon_h1_norm",
        "gemma4_even",
        "jais",
        "lfm2",
        "olmo2",
        "phi3_fused",
        "phi3_longrope",
        "qwen3_5_even",
    ] {
        hold(name, &exported(name, "f32", folder.path()));
    }
}

/// A written file that is written again is the same: the reader's configuration says all that the file does.
#[test]
fn a_written_file_is_written_again_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["cohere_plain", "cohere2_even", "gemma4_even", "jais", "lfm2", "olmo2", "phi3_fused", "phi3_longrope"]
    {
        let again = folder.path().join(format!("{name}-again.gguf"));
        let first = exported(name, "f32", folder.path());
        block_on(export(&first, &again, Vec::new(), &mut |_, _| {})).unwrap_or_else(|e| panic!("{name}: {e}"));
        let first = std::fs::read(folder.path().join(format!("{name}-f32.gguf"))).unwrap();
        assert!(first == std::fs::read(&again).unwrap(), "{name}");
    }
    for name in ["qwen3_5_even", "falcon_h1", "falcon_h1_norm"] {
        let again = folder.path().join(format!("{name}-again.gguf"));
        let first = exported(name, "f32", folder.path());
        block_on(export(&first, &again, Vec::new(), &mut |_, _| {})).unwrap_or_else(|e| panic!("{name}: {e}"));
        let second = open(&again);
        assert_eq!(first.config(), second.config(), "{name}");
        for entry in first.tensors() {
            let values = |from: &Checkpoint| block_on(from.read_f32(&entry.name)).unwrap();
            let error = nmse(&values(&first), &values(&second));
            // The logarithm of an exponential is rounded.
            assert!(error < 1e-12, "{name} {}: NMSE {error:.1e}", entry.name);
        }
    }
}

/// Value heads change places in blocks as well: the file gives the logits of the quantized checkpoint.
#[test]
fn value_heads_of_quantized_models_change_places() {
    let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    let folder = tempfile::tempdir().unwrap();
    for format in ["q8_0", "q4_0"] {
        let file = exported("qwen3_5_even", format, folder.path());
        assert_eq!(
            file.require("model.layers.0.linear_attn.out_proj.weight").unwrap().stored.name(),
            match format {
                "q8_0" => "Q8_0",
                _ => "Q4_0",
            }
        );
        let directory = open(&folder.path().join(format!("qwen3_5_even-{format}")));
        let logits = |checkpoint: &Checkpoint| {
            let options = EngineOptions { cache: CacheFormat::F32, context: Some(64), ..Default::default() };
            let mut engine = block_on(Engine::open(checkpoint, &gpu, &options, &mut |_, _| {})).unwrap();
            block_on(engine.logits(&[5, 900, 33, 71, 12, 400, 8], true)).unwrap().concat()
        };
        let error = nmse(&logits(&directory), &logits(&file));
        assert!(error < 1e-6, "{format}: NMSE {error:.1e}");
    }
}

/// What llama.cpp would compute otherwise is refused, with the field and what llama.cpp has.
#[test]
fn models_that_llama_cpp_computes_otherwise_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str, change: Value| {
        let file = folder.path().join(format!("{name}.gguf"));
        let mut config = fixture(name).config().clone();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let weights = std::fs::read(fixtures().join("models").join(name).join("model.safetensors")).unwrap();
        let source =
            MemorySource::new().with("config.json", config.to_string().into_bytes()).with("model.safetensors", weights);
        let checkpoint = block_on(Checkpoint::open(Rc::new(source))).unwrap();
        let error = block_on(export(&checkpoint, &file, Vec::new(), &mut |_, _| {})).expect_err(name).to_string();
        assert!(!file.exists() && error.contains("llama.cpp"), "{error}");
        error
    };
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64});
    for (name, change, part) in [
        ("qwen3_5", json!({}), "linear_value_head_dim 24"),
        ("gemma4", json!({}), "num_kv_shared_layers 2"),
        ("cohere", json!({}), "use_qk_norm = true"),
        ("cohere2", json!({}), "4 heads of 32"),
        ("cohere_plain", json!({"attention_bias": true}), "attention_bias"),
        ("cohere_plain", json!({"tie_word_embeddings": false}), "tie_word_embeddings"),
        ("cohere2_even", json!({"rope_scaling": scaling}), "llama3"),
        ("cohere2_even", json!({"layer_types": ["full_attention", "sliding_attention"]}), "layer_types"),
        ("falcon_h1_norm", json!({"mamba_norm_before_gate": true}), "mamba_norm_before_gate"),
        ("jais", json!({"mup_scale_qk_dot_by_d": false}), "root of the head size"),
        ("jais", json!({"alibi_scaling": {"factor": 2.0}}), "alibi_scaling"),
        ("lfm2", json!({"conv_bias": true}), "conv_bias"),
        ("olmo2", json!({"rope_scaling": scaling}), "llama3"),
        ("phi3_longrope", json!({"rope_scaling": {"type": "longrope", "attention_factor": 2.0}}), "attention_factor"),
    ] {
        let error = of(name, change);
        assert!(error.contains(part), "{name}: {error}");
    }
}
