//! The text part of a multimodal checkpoint, with every naming scheme that transformers has used.

use std::path::PathBuf;
use std::rc::Rc;

use bayan_generate::{Engine, EngineOptions};
use bayan_gpu::{Gpu, GpuOptions, block_on};
use bayan_models::CacheFormat;
use bayan_tensor::nmse;
use bayan_weights::{
    Checkpoint, DirectorySource, MemorySource, ModelPart, Policy, WriteOptions, format_by_name, model_part,
    quantize_checkpoint,
};
use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/multimodal/gemma3")
}

fn json(file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder().join(file)).unwrap()).unwrap()
}

/// The fixture with its tensors renamed; the header's length field is updated, the data is unchanged.
fn renamed(rename: impl Fn(&str) -> String) -> MemorySource {
    let file = rename_in(&std::fs::read(folder().join("model.safetensors")).unwrap(), rename);
    MemorySource::new()
        .with("config.json", std::fs::read(folder().join("config.json")).unwrap())
        .with("model.safetensors", file)
}

fn rename_in(bytes: &[u8], rename: impl Fn(&str) -> String) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let header: serde_json::Map<String, Value> =
        header.into_iter().map(|(name, value)| (rename(&name), value)).collect();
    let text = serde_json::to_vec(&header).unwrap();
    [&(text.len() as u64).to_le_bytes()[..], &text, &bytes[8 + length..]].concat()
}

fn logits(checkpoint: &Checkpoint, gpu: &Gpu) -> Vec<Vec<f32>> {
    let ids: Vec<u32> = serde_json::from_value(json("expected.json")["ids"].clone()).unwrap();
    let policy = Some(Policy::for_format(format_by_name("f32").unwrap()));
    let options = EngineOptions { cache: CacheFormat::F32, policy, context: Some(64), ..Default::default() };
    let mut engine = block_on(Engine::open(checkpoint, gpu, &options, &mut |_, _| {})).unwrap();
    block_on(engine.logits(&ids, true)).unwrap()
}

#[test]
fn the_text_part_of_gemma3_is_what_transformers_computes() {
    let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    let expected = json("expected.json");
    let saved = block_on(Checkpoint::open(Rc::new(DirectorySource::new(folder()).unwrap()))).unwrap();
    assert_eq!(
        (saved.config()["model_type"].as_str(), saved.config()["eos_token_id"][1].as_u64()),
        (Some("gemma3_text"), Some(106))
    );
    for (key, value) in expected["config"].as_object().unwrap() {
        assert_eq!(&saved.config()[key], value, "{key}, a default of transformers");
    }
    assert!(
        saved.names().all(|name| !name.contains("vision") && !name.contains("projector")),
        "{:?}",
        saved.names().collect::<Vec<_>>()
    );
    let row = |key: &str| serde_json::from_value::<Vec<f32>>(expected[key].clone()).unwrap();
    // Published files of transformers 4, first and later versions.
    let first = |name: &str| match name.strip_prefix("model.language_model.") {
        Some(rest) => format!("language_model.model.{rest}"),
        None => name.strip_prefix("model.").unwrap_or(name).to_string(),
    };
    let old = block_on(Checkpoint::open(Rc::new(renamed(first)))).unwrap();
    assert!(old.names().eq(saved.names()));
    for checkpoint in [&saved, &old] {
        let found = logits(checkpoint, &gpu);
        for (key, position) in [("last_logits", found.len() - 1), ("middle_logits", 20)] {
            let error = nmse(&row(key), &found[position]);
            assert!(error < 1e-9, "{key}: NMSE {error:.1e}");
        }
    }
}

/// The text checkpoints of Gemma 4 and Qwen 3.5 in the multimodal form in which they are published.
#[test]
fn text_parts_of_gemma4_and_qwen3_5_are_found() {
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    for (name, kind) in [("gemma4", "gemma4"), ("qwen3_5", "qwen3_5")] {
        let plain = block_on(Checkpoint::open(Rc::new(DirectorySource::new(models.join(name)).unwrap()))).unwrap();
        let mut text = plain.config().clone();
        let ends = text.as_object_mut().unwrap().remove("eos_token_id").unwrap();
        let config = serde_json::json!({"model_type": kind, "text_config": text, "eos_token_id": ends});
        let bytes = std::fs::read(models.join(name).join("model.safetensors")).unwrap();
        let file = rename_in(&bytes, |name| name.replace("model.", "model.language_model."));
        let source = MemorySource::new()
            .with("config.json", serde_json::to_vec(&config).unwrap())
            .with("model.safetensors", file);
        let found = block_on(Checkpoint::open(Rc::new(source))).unwrap();
        assert!(found.names().eq(plain.names()), "{name}");
        let [mut own, wanted] = [&found, &plain].map(|checkpoint| checkpoint.config().clone());
        // Defaults of transformers may be added, nothing is changed.
        own.as_object_mut().unwrap().retain(|key, _| wanted.get(key).is_some_and(|value| !value.is_null()));
        for (key, value) in own.as_object().unwrap() {
            assert_eq!(value, &wanted[key], "{name}: {key}");
        }
    }
    for name in ["model.visual.patch_embed.proj.weight", "mtp.fc.weight", "model.audio_tower.norm.weight"] {
        assert_eq!(model_part(name), ModelPart::Other, "{name}");
    }
}

#[test]
fn what_is_written_of_it_is_a_text_model() {
    let temporary = tempfile::tempdir().unwrap();
    let saved = block_on(Checkpoint::open(Rc::new(DirectorySource::new(folder()).unwrap()))).unwrap();
    let policy = Policy::for_format(format_by_name("q8_0").unwrap());
    let out = temporary.path().join("out");
    block_on(quantize_checkpoint(&saved, &out, &policy, &WriteOptions::default(), &mut |_| {})).unwrap();
    let written = block_on(Checkpoint::open(Rc::new(DirectorySource::new(&out).unwrap()))).unwrap();
    assert_eq!(written.config()["model_type"], "gemma3_text");
    let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    let expected: Vec<f32> = serde_json::from_value(json("expected.json")["last_logits"].clone()).unwrap();
    let error = nmse(&expected, logits(&written, &gpu).last().unwrap());
    assert!(error < 1e-2, "NMSE {error:.1e}");
}

#[test]
fn a_tensor_of_nothing_known_is_refused() {
    let source = renamed(|name| name.replace("model.language_model.norm", "model.audio_tower.norm"));
    let error = block_on(Checkpoint::open(Rc::new(source))).unwrap_err().to_string();
    assert!(error.contains("model.audio_tower.norm.weight"), "{error}");
}
