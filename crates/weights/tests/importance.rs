//! Importance of matrix inputs: files survive a round trip, quantization with importance reduces the weighted error,
//! and files of other models are refused.

use bayan_weights::gguf::blocks::BlockType;
use bayan_weights::gguf::writer::{Declared, Entry, GgufWriter};
use bayan_weights::{
    Checkpoint, DirectorySource, FORMATS, Importance, MemorySource, Policy, WeightsError, format_by_name,
};
use pollster::block_on;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

fn fixture(name: &str) -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name);
    block_on(Checkpoint::open(Rc::new(DirectorySource::new(path).expect("a directory")))).expect("a checkpoint")
}

/// A few inputs have nearly all the importance, as in real models.
fn made_for(checkpoint: &Checkpoint) -> Importance {
    let matrices = checkpoint.tensors().iter().filter(|tensor| tensor.shape.len() == 2);
    let values = |k: usize| (0..k).map(|i| if i % 11 == 3 { 50.0 } else { 0.01 + (i % 5) as f32 }).collect();
    Importance::new(1234, matrices.map(|tensor| (tensor.name.clone(), values(tensor.k()))).collect()).expect("sound")
}

#[test]
fn files_come_back() {
    let importance = made_for(&fixture("qwen2_bias"));
    let bytes = importance.to_bytes();
    assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
    let source = MemorySource::new().with("im.safetensors", bytes.clone());
    assert_eq!(block_on(Importance::read(&source, "im.safetensors", "qwen2")).expect("read"), importance);
    for cut in [0, 7, 9, bytes.len() / 2, bytes.len() - 1] {
        let source = MemorySource::new().with("im.safetensors", bytes[..cut].to_vec());
        assert!(block_on(Importance::read(&source, "im.safetensors", "qwen2")).is_err(), "{cut} bytes");
    }
    let weights = std::fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/qwen2_bias/model.safetensors"),
    )
    .expect("read");
    let error = block_on(Importance::read(&MemorySource::new().with("w", weights), "w", "qwen2")).expect_err("a model");
    assert!(error.to_string().contains("bayan imatrix"), "{error}");
    assert!(block_on(Importance::read(&MemorySource::new(), "none", "qwen2")).is_err());
    assert!(Importance::new(1, BTreeMap::from([("a".to_owned(), vec![1.0, f32::INFINITY])])).is_err());
    assert!(Importance::new(1, BTreeMap::from([("a".to_owned(), vec![-1.0])])).is_err());
}

#[test]
fn weighed_quantization_errs_less_where_it_counts() {
    let checkpoint = fixture("qwen2_bias");
    let importance = made_for(&checkpoint);
    for &format in FORMATS.iter().filter(|format| !format.is_dense()) {
        let mut policy = Policy::for_format(format);
        let coverage = importance.clone().apply(&checkpoint, &mut policy).expect("of this model");
        assert!(coverage.covered > 10 && coverage.without.is_empty(), "{coverage:?}");
        let (mut blind, mut guided) = (0.0, 0.0);
        for tensor in checkpoint.tensors().iter().filter(|tensor| tensor.name.ends_with("_proj.weight")) {
            let weights = &policy.importance[&tensor.name];
            let exact = block_on(checkpoint.read_f32(&tensor.name)).expect("read");
            let error = |importance: Option<&[f32]>| -> f64 {
                let planes =
                    block_on(checkpoint.read_planes_weighted(&tensor.name, 0..tensor.rows(), format, importance))
                        .expect("quantized");
                let squares = planes.dequantize().into_iter().zip(&exact).enumerate();
                squares.map(|(i, (a, b))| f64::from(weights[i % tensor.k()]) * f64::from(a - b).powi(2)).sum()
            };
            blind += error(None);
            guided += error(Some(weights));
        }
        println!("{}: weighted error {guided:.4e}, {:.3} of {blind:.4e}", format.name(), guided / blind);
        assert!(guided < 0.95 * blind, "{}: {guided:e} against {blind:e}", format.name());
    }
}

#[test]
fn files_of_other_models_are_refused() {
    let (checkpoint, other) = (fixture("qwen2_bias"), fixture("llama3_gqa"));
    let mut policy = Policy::for_format(format_by_name("q4_k").expect("a format"));
    assert!(made_for(&other).apply(&checkpoint, &mut policy).is_err());
    let name = "model.layers.0.mlp.up_proj.weight".to_owned();
    let of =
        |name: &str, k: usize| Importance::new(0, BTreeMap::from([(name.to_owned(), vec![1.0; k])])).expect("sound");
    let error = of(&name, 7).apply(&checkpoint, &mut policy).expect_err("other sizes");
    assert!(matches!(&error, WeightsError::Request { tensor, .. } if *tensor == name), "{error}");
    assert!(policy.importance.is_empty(), "a refused file changes nothing");
    let error =
        of("model.layers.0.mlp.up_projx.weight", 192).apply(&checkpoint, &mut policy).expect_err("no such tensor");
    assert!(matches!(error, WeightsError::MissingTensor { .. }), "{error}");
    let k = checkpoint.require(&name).expect("there").k();
    let coverage = of(&name, k).apply(&checkpoint, &mut policy).expect("of this model");
    assert_eq!(
        (coverage.covered, coverage.without.contains(&"model.layers.0.mlp.gate_proj.weight".to_owned())),
        (1, true)
    );
}

#[test]
fn llama_cpp_files_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("imatrix.gguf");
    let write = |kind: &str, names: &[&str], counts: f32| {
        let _ = std::fs::remove_file(&file);
        let metadata = [("general.type".to_owned(), Entry::Text(kind.to_owned()))];
        let vector = |name: String, shape: Vec<usize>| Declared { name, shape, kind: BlockType::F32 };
        let declared = names.iter().flat_map(|name| {
            [vector(format!("{name}.in_sum2"), vec![1, 4]), vector(format!("{name}.counts"), vec![1, 1])]
        });
        let mut writer = GgufWriter::create(&file, &metadata, declared.collect()).expect("begun");
        for _ in names {
            writer.write(&[2f32, 4.0, 0.0, 8.0].map(f32::to_le_bytes).concat()).expect("written");
            writer.write(&counts.to_le_bytes()).expect("written");
        }
        writer.finish().expect("finished");
    };
    let read = || {
        block_on(Importance::read(&DirectorySource::new(folder.path()).expect("a directory"), "imatrix.gguf", "llama"))
    };
    write("imatrix", &["blk.3.attn_q.weight", "output.weight"], 2.0);
    let found = read().expect("read");
    assert_eq!(found.columns()["model.layers.3.self_attn.q_proj.weight"], [1.0, 2.0, 0.0, 4.0]);
    assert_eq!((found.columns()["lm_head.weight"].len(), found.tokens()), (4, 2));
    write("imatrix", &["blk.3.nothing.weight"], 2.0);
    assert!(read().is_err());
    write("model", &["output.weight"], 2.0);
    assert!(read().expect_err("another kind").to_string().contains("imatrix"));
    write("imatrix", &["output.weight"], 0.0);
    assert!(read().expect("read").columns().is_empty(), "a matrix that no token went through");
}
