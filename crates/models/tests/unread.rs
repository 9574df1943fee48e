//! Checkpoints with tensors that the model does not read are refused, by name and with a remedy; those that change
//! nothing are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bayan_gpu::block_on;
use bayan_models::{LoadOptions, ModelError};
use bayan_weights::gguf::export::export;
use bayan_weights::safetensors::encode_header;
use bayan_weights::{Checkpoint, DirectorySource, Dtype, MemorySource, Source, TensorEntry};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

fn open(source: Rc<dyn Source>) -> Checkpoint {
    block_on(Checkpoint::open(source)).expect("a checkpoint")
}

/// The fixture's files, with one more tensor of these values in a shard of its own.
fn with_tensor(name: &str, tensor: &str, shape: &[usize], values: &[f32]) -> MemorySource {
    let directory = fixture(name);
    let known = open(Rc::new(DirectorySource::new(&directory).expect("a directory")));
    let place = |entry: &TensorEntry| (entry.name.clone(), json!(entry.file.as_ref()));
    let mut map: BTreeMap<String, Value> = known.tensors().iter().map(place).collect();
    map.insert(tensor.to_owned(), json!("added.safetensors"));
    let mut shard = encode_header(&[(tensor, Dtype::F32, shape, 4 * values.len() as u64)], &BTreeMap::new());
    shard.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let read = |file: &str| std::fs::read(directory.join(file)).expect("a file");
    let mut source = MemorySource::new().with("config.json", read("config.json")).with("added.safetensors", shard);
    let files: BTreeSet<&str> = known.tensors().iter().map(|entry| entry.file.as_ref()).collect();
    for file in files {
        // An index is read only where there is no single file.
        let name = if file == "model.safetensors" { "whole.safetensors" } else { file };
        source.insert(name, read(file));
    }
    map.values_mut().filter(|file| **file == "model.safetensors").for_each(|file| *file = json!("whole.safetensors"));
    source.with("model.safetensors.index.json", json!({"weight_map": map}).to_string().into_bytes())
}

fn load(checkpoint: &Checkpoint) -> Result<(), ModelError> {
    let options = LoadOptions { context: 16 };
    block_on(bayan_models::open(checkpoint, None, &options, None, &mut |_, _| {})).map(drop)
}

fn refusal(source: MemorySource) -> String {
    let error = load(&open(Rc::new(source))).expect_err("an unread tensor");
    assert!(matches!(error, ModelError::Unread { .. }), "{error}");
    error.to_string()
}

#[test]
fn tensors_that_would_be_dropped_are_named() {
    let ones = |count: usize| vec![1.0; count];
    for (tensor, shape, remedy) in [
        ("model.layers.1.self_attn.q_proj.bias", vec![256], "attention_bias"),
        ("model.layers.0.mlp.down_proj.bias", vec![128], "mlp_bias"),
        ("model.layers.0.self_attn.q_norm.weight", vec![64], "model_type"),
        ("lm_head.bias", vec![1003], "config.json"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", vec![4, 128], "merge"),
        ("model.layers.3.input_layernorm.weight", vec![128], "3 layers"),
        ("model.layers.0.mlp.up_proj.weight.absmax", vec![64], "bitsandbytes"),
    ] {
        let source = with_tensor("llama3_gqa", tensor, &shape, &ones(shape.iter().product()));
        let message = refusal(source);
        assert!(message.contains(tensor) && message.contains(remedy), "{message}");
    }
}

#[test]
fn useless_tensors_are_left_out() {
    for (tensor, shape) in [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", vec![32]),
        ("model.layers.0.attn.masked_bias", vec![1]),
        ("model.layers.0.attn.bias", vec![1, 1, 4, 4]),
    ] {
        let source = with_tensor("llama3_gqa", tensor, &shape, &vec![1.0; shape.iter().product()]);
        load(&open(Rc::new(source))).unwrap_or_else(|error| panic!("{tensor}: {error}"));
    }
    // Published checkpoints of Gemma 4 have projections of keys also for layers that read those of an earlier one.
    let keys = "model.layers.4.self_attn.k_proj.weight";
    let source = with_tensor("gemma4", keys, &[32, 32], &[1.0; 1024]);
    load(&open(Rc::new(source))).unwrap_or_else(|error| panic!("{keys}: {error}"));
    let zeros = with_tensor("llama3_gqa", "model.layers.0.mlp.up_proj.bias", &[224], &[0.0; 224]);
    load(&open(Rc::new(zeros))).expect("a bias of zeros changes nothing");
}

#[test]
fn a_tied_head_must_be_the_embedding() {
    let checkpoint = open(Rc::new(DirectorySource::new(fixture("llama3_tied")).expect("a directory")));
    let embedding = checkpoint.require("model.embed_tokens.weight").expect("an embedding").clone();
    let values = block_on(checkpoint.read_f32(&embedding.name)).expect("values");
    let same = with_tensor("llama3_tied", "lm_head.weight", &embedding.shape, &values);
    load(&open(Rc::new(same))).expect("the same numbers twice");
    let other: Vec<f32> = values.iter().map(|value| -value).collect();
    assert!(refusal(with_tensor("llama3_tied", "lm_head.weight", &embedding.shape, &other)).contains("lm_head.weight"));
}

#[test]
fn gguf_files_are_held_to_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let bias = with_tensor("llama3_gqa", "model.layers.1.self_attn.q_proj.bias", &[256], &[1.0; 256]);
    let file = folder.path().join("bias.gguf");
    block_on(export(&open(Rc::new(bias)), &file, Vec::new(), &mut |_, _| {})).expect("written");
    let error = load(&open(Rc::new(DirectorySource::new(&file).expect("a file")))).expect_err("a bias in one layer");
    assert!(error.to_string().contains("blk.1.attn_q.bias"), "{error}");
    let plain = folder.path().join("plain.gguf");
    let checkpoint = open(Rc::new(DirectorySource::new(fixture("llama3_gqa")).expect("a directory")));
    block_on(export(&checkpoint, &plain, Vec::new(), &mut |_, _| {})).expect("written");
    load(&open(Rc::new(DirectorySource::new(&plain).expect("a file")))).expect("every tensor is read");
}
