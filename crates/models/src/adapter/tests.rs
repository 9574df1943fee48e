//! Tests of the reader with PEFT's own files, and with files that must be rejected.

use std::borrow::Cow;

use bayan_weights::MemorySource;
use serde_json::{Value, json};

use super::*;

const CASES: [&str; 5] = [
    "llama3_r8_all/adapter_init",
    "llama3_r8_all/adapter_final",
    "qwen2_r4_rslora/adapter_init",
    "qwen2_r4_rslora/adapter_final",
    "dpo_llama3_r8/adapter_init",
];

fn fixture(case: &str, file: &str) -> Vec<u8> {
    let path: std::path::PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "../../tests/fixtures/lora", case, file].iter().collect();
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Runs a future that never waits, because its data is in memory.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("memory does not wait"),
    }
}

fn open(
    config: impl Into<Cow<'static, [u8]>>,
    weights: impl Into<Cow<'static, [u8]>>,
) -> Result<Adapter, AdapterError> {
    now(Adapter::open(Rc::new(MemorySource::new().with(ADAPTER_CONFIG, config).with(ADAPTER_MODEL, weights))))
}

fn changed(case: &str, change: impl FnOnce(&mut Value)) -> Result<Adapter, AdapterError> {
    let mut config: Value = serde_json::from_slice(&fixture(case, ADAPTER_CONFIG)).unwrap();
    change(&mut config);
    open(config.to_string().into_bytes(), fixture(case, ADAPTER_MODEL))
}

#[test]
fn peft_files_are_read_and_written_to_the_byte() {
    for case in CASES {
        let (config, weights) = (fixture(case, ADAPTER_CONFIG), fixture(case, ADAPTER_MODEL));
        let adapter = open(config.clone(), weights.clone()).unwrap();
        assert!(adapter.encode_weights().unwrap() == weights, "{case}: weights");
        let written = String::from_utf8(adapter.encode_config()).unwrap();
        assert_eq!(written, String::from_utf8(config).unwrap().trim_end(), "{case}");
        assert_eq!(open(written.into_bytes(), weights).unwrap(), adapter, "{case}");
    }
}

#[test]
fn modules_have_names_shapes_and_scales() {
    let adapter = open(fixture(CASES[2], ADAPTER_CONFIG), fixture(CASES[2], ADAPTER_MODEL)).unwrap();
    assert_eq!(adapter.modules.len(), 6);
    let down = &adapter.modules["model.layers.1.mlp.down_proj"];
    assert_eq!((down.rank, down.in_features, down.out_features, down.scale), (4, 224, 192, 8.0));
    assert_eq!((down.a.len(), down.b.len()), (4 * 224, 192 * 4));
    let llama = open(fixture(CASES[0], ADAPTER_CONFIG), fixture(CASES[0], ADAPTER_MODEL)).unwrap();
    assert!(llama.modules.values().all(|m| m.scale == 2.0 && m.rank == 8));
    assert_eq!(llama.parameters(), 224256 / 4);
}

#[test]
fn what_is_not_honoured_is_refused_by_name() {
    let refused = [
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("use_qalora", json!(true)),
        ("layer_replication", json!([[0, 2], [1, 3]])),
        ("target_parameters", json!(["experts.down_proj"])),
        ("trainable_token_indices", json!([1, 2])),
        ("alora_invocation_tokens", json!([3])),
        ("arrow_config", json!({"top_k": 3})),
        ("kasa_config", json!({"beta": 1})),
        ("use_bdlora", json!({"nblocks": 2})),
        ("velora_config", json!({"scale": 1})),
        ("monteclora_config", json!({"n": 1})),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("fan_in_fan_out", json!(true)),
        ("megatron_config", json!({"a": 1})),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("corda_config", json!({"a": 1})),
        ("lora_ga_config", json!({"a": 1})),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("layers_pattern", json!("blocks")),
        ("peft_type", json!("IA3")),
        ("peft_type", json!(null)),
        ("task_type", json!("SEQ_CLS")),
        ("a_field_of_tomorrow", json!(1)),
        ("r", json!(0)),
        ("r", json!(-3)),
        ("r", json!(1u64 << 40)),
        ("lora_alpha", json!("16")),
        ("lora_dropout", json!(1.5)),
        ("use_rslora", json!(1)),
        ("target_modules", json!(null)),
        ("target_modules", json!("(q_proj")),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!(["q_proj"])),
        ("alpha_pattern", json!({"(": 1})),
        ("layers_to_transform", json!("0")),
    ];
    for (field, value) in refused {
        let error = changed(CASES[0], |config| config[field] = value.clone()).expect_err(field).to_string();
        assert!(error.contains(&format!("`{field}`")), "{field} = {value}: {error}");
    }
    for harmless in [
        ("a_field_of_tomorrow", json!(null)),
        ("eva_config", json!({"rho": 2.0})),
        ("ensure_weight_tying", json!(true)),
        ("init_lora_weights", json!("eva")),
        ("use_dora", json!(false)),
        ("runtime_config", json!({"ephemeral_gpu_offload": false})),
    ] {
        assert!(changed(CASES[0], |config| config[harmless.0] = harmless.1.clone()).is_ok(), "{harmless:?}");
    }
}

#[test]
fn ranks_and_targets_must_agree_with_the_tensors() {
    let error = |change: &dyn Fn(&mut Value)| changed(CASES[0], |config| change(config)).unwrap_err().to_string();
    assert!(error(&|c| c["r"] = json!(4)).contains("rank 4"));
    assert!(
        error(&|c| c["rank_pattern"] = json!({"layers.1.self_attn.q_proj": 4})).contains("layers.1.self_attn.q_proj")
    );
    assert!(error(&|c| c["target_modules"] = json!(["q_proj"])).contains("target_modules"));
    assert!(error(&|c| c["layers_to_transform"] = json!([0])).contains("layers_to_transform"));
    assert!(error(&|c| c["exclude_modules"] = json!(["k_proj"])).contains("k_proj"));
    let adapter = changed(CASES[0], |c| {
        c["r"] = json!(99);
        c["rank_pattern"] = json!({"q_proj|.*proj": 8, "q_proj": 3});
        c["alpha_pattern"] = json!({"layers\\.0\\..*": 32});
        c["target_modules"] = json!(".*\\.(self_attn|mlp)\\.(?!embed).*_proj");
    })
    .unwrap();
    assert_eq!(adapter.modules["model.layers.0.self_attn.q_proj"].scale, 4.0);
    assert_eq!(adapter.modules["model.layers.1.self_attn.q_proj"].scale, 2.0);
}

#[test]
fn names_are_matched_as_peft_matches_them() {
    let rules = |targets: Value, layers: Option<Vec<usize>>| {
        let mut config = AdapterConfig::new(8, 16.0, TargetModules::from_json("target_modules", &targets).unwrap());
        config.layers_to_transform = layers;
        config.rules().unwrap()
    };
    let q = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj");
    assert!(rules(json!(["q_proj"]), None).is_target(&q(0)).unwrap());
    assert!(!rules(json!(["proj"]), None).is_target(&q(0)).unwrap());
    assert!(rules(json!(["self_attn.q_proj"]), None).is_target(&q(0)).unwrap());
    assert!(!rules(json!(["q_proj"]), Some(vec![1])).is_target(&q(0)).unwrap());
    assert!(rules(json!(["q_proj"]), Some(vec![1])).is_target(&q(1)).unwrap());
    assert!(rules(json!([q(0)]), Some(vec![1])).is_target(&q(0)).unwrap(), "a full name ignores the layers");
    assert!(!rules(json!("q_proj"), None).is_target(&q(0)).unwrap(), "an expression must match the whole name");
    assert!(rules(json!("all-linear"), None).is_target(&q(0)).unwrap());
    assert!(!rules(json!("all-linear"), None).is_target("lm_head").unwrap());
    assert_eq!(layer_of("model.layers.17.mlp.up_proj"), Some(17));
    assert_eq!(layer_of("lm_head"), None);
    let endless = AdapterConfig::new(8, 16.0, TargetModules::Regex("(a*)*(?=b)\\1c".into())).rules().unwrap();
    assert!(endless.is_target(&"a".repeat(40)).unwrap_err().to_string().contains("bounded"));
}

#[test]
fn foreign_tensors_are_refused() {
    let config = fixture(CASES[2], ADAPTER_CONFIG);
    let file = |tensors: &[(&str, [usize; 2])]| {
        let arrays: Vec<(&str, Dtype, &[usize], u64)> =
            tensors.iter().map(|(n, s)| (*n, Dtype::F32, &s[..], 4 * (s[0] * s[1]) as u64)).collect();
        let mut bytes = encode_header(&arrays, &BTreeMap::new());
        bytes.extend(vec![0; arrays.iter().map(|a| a.3 as usize).sum()]);
        bytes
    };
    let (a, b) = tensor_names("model.layers.0.self_attn.q_proj");
    assert!(open(config.clone(), file(&[(&a, [4, 8]), (&b, [8, 4])])).is_ok());
    let refused: [(&[(&str, [usize; 2])], &str); 8] = [
        (&[], "at least one pair"),
        (&[(&a, [4, 8])], "counterpart"),
        (&[(&a, [5, 8]), (&b, [8, 4])], "rank 4"),
        (&[(&a, [4, 8]), (&b, [8, 5])], "rank 4"),
        (&[(&a, [4, 0]), (&b, [8, 4])], "matrix"),
        (&[("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", [4, 8])], "adapter's name"),
        (&[("base_model.model.lm_head.weight", [4, 8])], "whole weight"),
        (&[("base_model.model.x.lora_magnitude_vector", [4, 8])], "DoRA"),
    ];
    for (tensors, part) in refused {
        let error = open(config.clone(), file(tensors)).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let pickle = MemorySource::new().with(ADAPTER_CONFIG, config).with("adapter_model.bin", vec![0x80, 2]);
    let error = now(Adapter::open(Rc::new(pickle))).unwrap_err().to_string();
    assert!(error.contains("pickle"), "{error}");
}

#[test]
fn the_base_must_have_the_modules_in_these_sizes() {
    let adapter = open(fixture(CASES[2], ADAPTER_CONFIG), fixture(CASES[2], ADAPTER_MODEL)).unwrap();
    let sizes = |name: &str| adapter.modules.get(name).map(|m| (m.out_features, m.in_features));
    assert!(adapter.check_base(sizes).is_ok());
    assert!(
        adapter.check_base(|_| None).unwrap_err().to_string().contains("base model that the adapter was trained on")
    );
    let wrong = adapter.check_base(|name| sizes(name).map(|(out, input)| (out + 1, input))).unwrap_err().to_string();
    assert!(wrong.contains("as this model has"), "{wrong}");
}

/// The fixture under the names of a multimodal checkpoint, with a pair for the vision tower.
fn multimodal(prefix: &str, targets: Value) -> Result<Adapter, AdapterError> {
    let case = CASES[0];
    let mut adapter = open(fixture(case, ADAPTER_CONFIG), fixture(case, ADAPTER_MODEL)).unwrap();
    let vision = adapter.modules.values().next().unwrap().clone();
    adapter.modules = adapter
        .modules
        .into_iter()
        .map(|(name, module)| (format!("{prefix}{}", name.strip_prefix("model.").unwrap()), module))
        .chain([("model.vision_tower.layers.0.self_attn.q_proj".to_owned(), vision)])
        .collect();
    let mut config: Value = serde_json::from_slice(&fixture(case, ADAPTER_CONFIG)).unwrap();
    config["target_modules"] = targets;
    open(config.to_string().into_bytes(), adapter.encode_weights().unwrap())
}

#[test]
fn adapters_of_multimodal_models_have_text_names() {
    let case = CASES[0];
    let plain = open(fixture(case, ADAPTER_CONFIG), fixture(case, ADAPTER_MODEL)).unwrap();
    let names = json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    for prefix in ["model.language_model.", "language_model.model."] {
        let everything =
            json!(format!("(model\\.vision_tower|{})\\..*_proj", prefix.trim_end_matches('.').replace('.', "\\.")));
        for targets in [names.clone(), everything] {
            let adapter = multimodal(prefix, targets.clone()).unwrap();
            assert_eq!(adapter.modules, plain.modules, "{prefix} {targets}");
            // What is written again is an adapter of the text model.
            let written = open(adapter.encode_config(), adapter.encode_weights().unwrap()).unwrap();
            assert_eq!(written.modules, plain.modules, "{prefix} {targets}");
        }
    }
}
