//! Untrusted configurations and adapters: whatever is changed in them, they are read or rejected without a panic.

use std::path::Path;
use std::rc::Rc;

use bayan_gpu::block_on;
use bayan_models::{ADAPTER_CONFIG, ADAPTER_MODEL, Adapter, Fields, Rotary};
use bayan_weights::{Checkpoint, Dtype, MemorySource};
use proptest::prelude::*;
use serde_json::{Value, json};

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// The configurations of all test checkpoints.
fn configs() -> Vec<Value> {
    let mut folders: Vec<_> = std::fs::read_dir(fixtures().join("models"))
        .expect("models")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    folders.sort();
    folders
        .iter()
        .map(|folder| {
            serde_json::from_slice(&std::fs::read(folder.join("config.json")).expect("a file")).expect("JSON")
        })
        .collect()
}

/// Values that are invalid for most fields.
fn strange() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!(0)),
        Just(json!(-1)),
        Just(json!(1)),
        Just(json!(3)),
        Just(json!(u64::MAX)),
        Just(json!(1e308)),
        Just(json!(-0.0)),
        Just(json!("x")),
        Just(json!([])),
        Just(json!([1, "a", null])),
        Just(json!({"rope_type": "yarn", "factor": 0})),
        Just(json!({"type": "linear", "factor": -4.0})),
        Just(json!(true)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f32>().prop_map(|n| json!(n)),
    ]
}

/// Replaces a field, selected by `at`, anywhere in an object.
fn replace(value: &mut Value, at: prop::sample::Index, with: Value) {
    let Value::Object(fields) = value else { return *value = with };
    if fields.is_empty() {
        return;
    }
    let name = fields.keys().nth(at.index(fields.len())).cloned().unwrap_or_default();
    match fields.get_mut(&name) {
        Some(inner @ Value::Object(_)) if at.index(3) > 0 => replace(inner, at, with),
        _ => drop(fields.insert(name, with)),
    }
}

fn read_config(config: &Value) {
    let mut weights = bayan_weights::safetensors::encode_header(&[("w", Dtype::F32, &[1], 4)], &Default::default());
    weights.extend([0; 4]);
    let source =
        MemorySource::new().with("config.json", config.to_string().into_bytes()).with("model.safetensors", weights);
    let Ok(checkpoint) = block_on(Checkpoint::open(Rc::new(source))) else { return };
    match bayan_models::describe(checkpoint.config()) {
        Ok(described) => {
            let sizes = described.sizes;
            assert_eq!(described.cache.len(), sizes.num_hidden_layers);
            assert!(!described.tensors.is_empty());
            let fields = Fields(checkpoint.config());
            if let Ok(rotary) = Rotary::read(&fields, sizes.head_dim, sizes.max_position_embeddings, 64) {
                assert_eq!(rotary.table(3).len(), 3 * 2 * rotary.frequencies.len());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn changed_configurations_are_read_or_refused(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), strange()), 1..4),
    ) {
        let configs = configs();
        let mut config = configs[which.index(configs.len())].clone();
        for (at, with) in changes {
            replace(&mut config, at, with);
        }
        read_config(&config);
    }

    #[test]
    fn changed_adapters_are_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), strange()), 0..3),
        damage in prop::collection::vec((0..900usize, any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let folder = fixtures().join("lora/llama3_r8_all/adapter_final");
        let mut config: Value = serde_json::from_slice(&std::fs::read(folder.join(ADAPTER_CONFIG)).expect("a file")).expect("JSON");
        for (at, with) in changes {
            replace(&mut config, at, with);
        }
        let mut weights = std::fs::read(folder.join(ADAPTER_MODEL)).expect("a file");
        for (at, byte) in damage {
            weights[at] = byte;
        }
        if let Some(cut) = cut {
            weights.truncate(cut.index(weights.len()));
        }
        let config = config.to_string().into_bytes();
        let source = MemorySource::new().with(ADAPTER_CONFIG, config).with(ADAPTER_MODEL, weights);
        match block_on(Adapter::open(Rc::new(source))) {
            Ok(adapter) => assert!(adapter.modules.values().all(|module| module.rank > 0)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
