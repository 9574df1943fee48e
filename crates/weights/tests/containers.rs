//! Checkpoints of other programs (PyTorch archives; matrices packed by GPTQ, AWQ and MLX) compared with their expected
//! values.

use bayan_weights::{Checkpoint, DirectorySource, Dtype, MemorySource, Stored};
use pollster::block_on;
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::rc::Rc;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/packed").join(name)
}

fn open(name: &str) -> Result<Checkpoint, bayan_weights::WeightsError> {
    block_on(Checkpoint::open(Rc::new(DirectorySource::new(fixture(name)).expect("a directory"))))
}

/// Names and values of `expected.safetensors`.
fn expected(name: &str) -> Vec<(String, Vec<f32>)> {
    let bytes = std::fs::read(fixture(name).join("expected.safetensors")).expect("values");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let values = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    file.iter().map(|(name, view)| (name.to_owned(), values(view.data()))).collect()
}

const WEIGHT: &str = "model.layers.0.mlp.up_proj.weight";

#[test]
fn packed_matrices_have_their_values() {
    // Native format, and the largest allowed error relative to the largest weight.
    let cases = [
        ("gptq-sym-128", "q4_0", 0.0),
        ("gptq-asym-32", "q4_1", 1e-3),
        ("gptq-v2-64", "q4_1", 1e-3),
        ("gptq-order-64", "q8_0", 8e-3),
        ("awq-64", "q4_1", 1e-3),
        ("mlx-4bit-64", "q4_1", 0.0),
        ("mlx-8bit-32", "f16", 1e-3),
    ];
    for (name, format, tolerance) in cases {
        let checkpoint = open(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let wanted = expected(name).remove(0).1;
        let entry = checkpoint.require(WEIGHT).expect("joined");
        assert_eq!(entry.shape, [40, 256], "{name}");
        let stored = std::fs::metadata(fixture(name).join("model.safetensors")).expect("a file").len();
        assert!(checkpoint.size_bytes() < stored, "{name}: no byte is counted twice");
        assert_eq!(block_on(checkpoint.read_f32(WEIGHT)).expect("reads"), wanted, "{name}");
        // Row ranges across and inside words of 8.
        for rows in [0..1, 3..5, 7..17, 39..40] {
            let part = block_on(checkpoint.read_rows_f32(WEIGHT, rows.clone())).expect("reads");
            assert_eq!(part, wanted[rows.start * 256..rows.end * 256], "{name} {rows:?}");
        }
        let Stored::Foreign(foreign) = entry.stored else { panic!("{name}: {:?}", entry.stored) };
        assert_eq!(foreign.native.name(), format, "{name}");
        let planes = block_on(checkpoint.read_planes(WEIGHT, 2..40, foreign.native)).expect("planes").dequantize();
        let peak = wanted.iter().fold(0f32, |most, value| most.max(value.abs()));
        for (a, b) in planes.iter().zip(&wanted[2 * 256..]) {
            assert!((a - b).abs() <= tolerance * peak, "{name}: {a} for {b}");
        }
    }
}

#[test]
fn pytorch_archives_have_their_values() {
    for name in ["pytorch", "pytorch-shards"] {
        let checkpoint = open(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let wanted = expected(name);
        assert_eq!(checkpoint.tensors().len(), wanted.len() + 1, "{name}: and an f64 buffer");
        for (tensor, values) in wanted {
            assert_eq!(block_on(checkpoint.read_f32(&tensor)).expect("reads"), values, "{name} {tensor}");
        }
        let kinds = ["model.embed_tokens.weight", WEIGHT, "model.norm.weight"]
            .map(|tensor| checkpoint.require(tensor).expect("there").stored.name());
        assert_eq!(kinds, ["BF16", "F16", "F32"], "{name}");
        assert!(matches!(
            checkpoint.require("model.layers.0.self_attn.rotary_emb.inv_freq").expect("there").stored,
            Stored::Dense(Dtype::F64)
        ));
    }
}

#[test]
fn a_pickle_that_calls_is_refused_by_name() {
    let error = open("pytorch-attack").expect_err("an attack").to_string();
    assert!(error.contains("system") && error.contains("nothing was run"), "{error}");
    let error = open("pytorch-legacy").expect_err("an old form").to_string();
    assert!(error.contains("before PyTorch 1.6"), "{error}");
}

fn memory(config: &str, file: &str, bytes: Vec<u8>) -> Result<Checkpoint, bayan_weights::WeightsError> {
    block_on(Checkpoint::open(Rc::new(
        MemorySource::new().with("config.json", config.as_bytes().to_vec()).with(file.to_owned(), bytes),
    )))
}

#[test]
fn other_quantizations_are_refused_by_name() {
    let weights = std::fs::read(fixture("awq-64").join("model.safetensors")).expect("a file");
    let error = |config: &str| memory(config, "model.safetensors", weights.clone()).expect_err("refused").to_string();
    assert!(
        error(r#"{"quantization_config": {"quant_method": "bitsandbytes", "group_size": 64}}"#)
            .contains("bitsandbytes")
    );
    assert!(
        error(r#"{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}}"#)
            .contains("gemv")
    );
    assert!(error(r#"{"quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": 64}}"#).contains('3'));
    assert!(
        error(r#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 7}}"#)
            .contains("group_size")
    );
    assert!(error(r#"{"quantization": {"group_size": 64, "bits": 3}}"#).contains("4 and 8 bits"));
    // A group size other than that of the arrays.
    assert!(
        error(r#"{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}"#).contains("scales")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Damage anywhere in an archive gives an error or tensors inside the file, never a panic.
    #[test]
    fn damaged_archives_are_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        tail: bool,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = std::fs::read(fixture("pytorch").join("pytorch_model.bin")).expect("a file");
        for (at, value) in changes {
            // The parsed parts are the directory at the end and the pickle at the start.
            let window = 1200.min(bytes.len());
            let at = if tail { bytes.len() - window + at.index(window) } else { at.index(window) };
            bytes[at] = value;
        }
        if cut.index(4) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        let size = bytes.len() as u64;
        if let Ok(checkpoint) = memory("{}", "pytorch_model.bin", bytes) {
            for entry in checkpoint.tensors() {
                prop_assert!(entry.offsets[0] + entry.size_bytes() <= size);
                let _ = block_on(checkpoint.read_rows_f32(&entry.name, 0..entry.rows()));
            }
        }
    }
}
