//! Files that are something else than their name says, and JSON as Python and Windows write it.

use bayan_weights::{Checkpoint, DirectorySource, Dtype, MemorySource, Policy, Stored, format_by_name};
use pollster::block_on;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::rc::Rc;

fn fixtures(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(part)
}

fn weights() -> Vec<u8> {
    let mut bytes = bayan_weights::safetensors::encode_header(&[("w", Dtype::F32, &[1], 4)], &Default::default());
    bytes.extend([0; 4]);
    bytes
}

fn open(source: MemorySource) -> Result<Checkpoint, String> {
    block_on(Checkpoint::open(Rc::new(source))).map_err(|error| error.to_string())
}

const POINTER: &[u8] =
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12\n";
const PAGE: &[u8] = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n";

#[test]
fn pointers_and_pages_are_named() {
    for (bytes, what) in [(POINTER, "git lfs pull"), (PAGE, "a web page")] {
        for file in ["model.safetensors", "model.gguf", "pytorch_model.bin"] {
            let source = MemorySource::new().with("config.json", &b"{}"[..]).with(file, bytes);
            let error = open(source).expect_err("no weights");
            assert!(error.contains(what) && error.contains(file), "{error}");
        }
        let source = MemorySource::new().with("config.json", bytes).with("model.safetensors", weights());
        let error = open(source).expect_err("no configuration");
        assert!(error.contains(what) && error.contains("config.json"), "{error}");
    }
}

#[test]
fn a_path_to_a_file_is_named_by_its_contents() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes, what) in [
        ("a.gguf", POINTER.to_vec(), "git lfs pull"),
        ("b.bin", b"PK\x03\x04\0\0\0\0".to_vec(), "torch.save"),
        ("c.safetensors", weights(), "give their directory"),
        ("d", PAGE.to_vec(), "a web page"),
        ("config.json", b"{}".to_vec(), "give the directory"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        let error = DirectorySource::new(&path).expect_err("no model").to_string();
        assert!(error.contains(what) && error.contains(name), "{error}");
    }
}

#[test]
fn adapters_and_models_are_told_apart() {
    let config = json!({"peft_type": "LORA", "base_model_name_or_path": "org/base"}).to_string();
    let adapter = MemorySource::new()
        .with("adapter_config.json", config.into_bytes())
        .with("adapter_model.safetensors", weights());
    let error = open(adapter.clone()).expect_err("an adapter");
    assert!(error.contains("--adapter") && error.contains("org/base"), "{error}");
    let model = MemorySource::new().with("config.json", &b"{}"[..]).with("model.safetensors", weights());
    let error = block_on(Checkpoint::open_as(Rc::new(model), "adapter_config.json", "adapter_model"));
    assert!(error.expect_err("a model").to_string().contains("--model"));
    assert!(block_on(Checkpoint::open_as(Rc::new(adapter), "adapter_config.json", "adapter_model")).is_ok());
}

#[test]
fn quantizations_that_are_not_read_are_named() {
    for (config, what) in [
        (json!({"quant_method": "bitsandbytes", "load_in_4bit": true}), "bitsandbytes (4 bits"),
        (json!({"quant_method": "bitsandbytes", "load_in_8bit": true}), "bitsandbytes (8 bits"),
        (json!({"quant_method": "fp8", "weight_block_size": [128, 128]}), "fp8"),
        (json!({"quant_method": "compressed-tensors", "config_groups": {}}), "compressed-tensors"),
        (json!({"quant_method": "new"}), "new"),
        (json!({}), "quant_method is missing"),
    ] {
        let config = json!({"quantization_config": config}).to_string();
        let source = MemorySource::new().with("config.json", config.into_bytes()).with("model.safetensors", weights());
        let error = open(source).expect_err("not read");
        assert!(error.contains(what) && error.contains("original checkpoint"), "{error}");
    }
}

#[test]
fn json_of_python_and_windows_is_read() {
    let config = "\u{feff}{\"a\": Infinity, \"b\": NaN, \"c\": 1}";
    let source =
        MemorySource::new().with("config.json", config.as_bytes().to_vec()).with("model.safetensors", weights());
    let checkpoint = open(source).expect("a configuration");
    assert_eq!(checkpoint.config(), &json!({"a": f64::MAX, "b": null, "c": 1}));
}

/// Q4_K that is asked for as q4_0 becomes q4_0, and the loss is said; as f32 or q4_k there is none.
#[test]
fn quantizing_twice_is_done_and_measured() {
    let path = fixtures("gguf/llama3_k256-Q4_K.gguf");
    let checkpoint =
        block_on(Checkpoint::open(Rc::new(DirectorySource::new(path).expect("a file")))).expect("a checkpoint");
    let policy = |name: &str| Policy::for_format(format_by_name(name).expect("a format"));
    let up = checkpoint.require("model.layers.0.mlp.up_proj.weight").expect("a matrix");
    assert!(matches!(up.stored, Stored::Foreign(foreign) if foreign.name == "Q4_K"));
    for name in ["q4_0", "q8_0", "f32", "q4_k"] {
        assert_eq!(up.loaded_format(Some(&policy(name))).name(), name, "what is asked for is done");
    }
    let found = block_on(checkpoint.requantized(&policy("q4_0"))).expect("measured");
    let group = found.iter().find(|group| group.stored == "Q4_K" && group.wanted.name() == "q4_0").expect("a group");
    let error = group.added_error.expect("measured");
    assert!((0.02..0.2).contains(&error), "{error}");
    assert!(group.note().contains("quantized again to q4_0"), "{}", group.note());
    assert!(block_on(checkpoint.requantized(&policy("f32"))).expect("measured").is_empty());
    let same = block_on(checkpoint.requantized(&policy("q4_k"))).expect("measured");
    assert!(same.iter().all(|group| group.stored != "Q4_K" || group.wanted.name() != "q4_k"), "{same:?}");
}
