//! Real (tiny) checkpoints, read by rows and compared with the `safetensors` crate.

use bayan_weights::formats::{F16, F32, Q4_0, Q4K, Q8_0};
use bayan_weights::{Checkpoint, DirectorySource, Dtype, FORMATS, MemorySource, Stored, WeightsError};
use half::{bf16, f16};
use pollster::block_on;
use safetensors::SafeTensors;
use std::path::PathBuf;
use std::rc::Rc;

/// The checkpoints of tests/fixtures/models.
fn models() -> Vec<String> {
    let folders = std::fs::read_dir(fixture("")).expect("listed");
    folders.map(|entry| entry.expect("listed").file_name().into_string().expect("a name")).collect()
}

fn fixture(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(model)
}

fn open(model: &str) -> Checkpoint {
    let source = DirectorySource::new(fixture(model)).expect("the fixture is there");
    block_on(Checkpoint::open(Rc::new(source))).expect("the fixture is sound")
}

fn by_the_crate(view: &safetensors::tensor::TensorView<'_>) -> Vec<f32> {
    let data = view.data();
    match view.dtype() {
        safetensors::Dtype::F32 => data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("4"))).collect(),
        safetensors::Dtype::F16 => data.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => data.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

#[test]
fn every_tensor_equals_the_reference_reader() {
    let models = models();
    assert!(models.len() > 20);
    for model in models.iter().map(String::as_str) {
        let checkpoint = open(model);
        let mut seen = 0;
        for file in std::fs::read_dir(fixture(model)).expect("listed") {
            let path = file.expect("listed").path();
            if path.extension().is_none_or(|extension| extension != "safetensors") {
                continue;
            }
            let bytes = std::fs::read(&path).expect("read");
            let reference = SafeTensors::deserialize(&bytes).expect("sound");
            for (name, view) in reference.tensors() {
                seen += 1;
                let entry = checkpoint.tensor(&name).expect("listed");
                assert_eq!(entry.shape, view.shape(), "{model} {name}");
                let expected = by_the_crate(&view);
                assert_eq!(block_on(checkpoint.read_f32(&name)).expect("read"), expected, "{model} {name}");
                let (rows, k) = (entry.rows(), entry.k());
                let part = rows / 3..rows - rows / 4;
                let got = block_on(checkpoint.read_rows_f32(&name, part.clone())).expect("read");
                assert_eq!(got, expected[part.start * k..part.end * k], "{model} {name} {part:?}");
            }
        }
        assert!(seen > 10, "{model}");
        assert_eq!(checkpoint.names().count(), seen, "{model}");
        let stored: u64 = checkpoint.tensors().iter().map(|entry| entry.size_bytes()).sum();
        assert_eq!(stored, checkpoint.size_bytes());
    }
}

#[test]
fn the_config_and_side_files_are_there() {
    let checkpoint = open("llama3_gqa");
    assert_eq!(checkpoint.config()["model_type"], "llama");
    let tokenizer = block_on(checkpoint.text("tokenizer.json")).expect("read").expect("there");
    assert!(tokenizer.starts_with('{'));
    assert!(block_on(checkpoint.text("no_such_file")).expect("no error").is_none());
    assert!(block_on(checkpoint.text("../llama3_gqa/config.json")).is_err());
}

#[test]
fn planes_do_not_depend_on_how_rows_are_cut() {
    let checkpoint = open("llama2_mha");
    for name in ["model.layers.0.mlp.down_proj.weight", "model.norm.weight", "model.embed_tokens.weight"] {
        let entry = checkpoint.require(name).expect("there").clone();
        for format in FORMATS {
            let whole = block_on(checkpoint.read_planes(name, 0..entry.rows(), *format)).expect("read");
            let mut joined = vec![Vec::new(); whole.bytes.len()];
            let step = entry.rows_per_chunk(*format, 3000);
            assert!(entry.rows() == 1 || step < entry.rows());
            for start in (0..entry.rows()).step_by(step) {
                let end = entry.rows().min(start + step);
                let part = block_on(checkpoint.read_planes(name, start..end, *format)).expect("read");
                assert_eq!(part.rows, end - start);
                for (to, from) in joined.iter_mut().zip(part.bytes) {
                    if end < entry.rows() {
                        assert!(from.len().is_multiple_of(4), "{name} {format:?}: a chunk is whole words");
                    }
                    to.extend(from);
                }
            }
            assert_eq!(joined, whole.bytes, "{name} {format:?}");
        }
    }
}

#[test]
fn same_dense_type_passes_through() {
    let checkpoint = open("llama2_mha");
    let name = "lm_head.weight";
    assert!(matches!(checkpoint.require(name).expect("there").stored, Stored::Dense(Dtype::F16)));
    let planes = block_on(checkpoint.read_planes(name, 5..9, &F16)).expect("read");
    let values = block_on(checkpoint.read_rows_f32(name, 5..9)).expect("read");
    assert_eq!(planes.dequantize(), values);
    let planes = block_on(checkpoint.read_planes(name, 5..9, &F32)).expect("read");
    assert_eq!(planes.dequantize(), values);
}

#[test]
fn requests_beyond_a_tensor_are_refused() {
    let checkpoint = open("llama2_mha");
    let name = "model.layers.0.mlp.up_proj.weight";
    #[allow(clippy::reversed_empty_ranges)]
    for rows in [0..289, 288..290, 3..2, usize::MAX - 1..usize::MAX] {
        let error = block_on(checkpoint.read_rows_f32(name, rows.clone())).expect_err("out of range");
        assert!(matches!(error, WeightsError::Request { .. }), "{rows:?}: {error}");
    }
    assert!(block_on(checkpoint.read_rows_f32(name, 288..288)).expect("empty").is_empty());
    assert_eq!(block_on(checkpoint.read_planes(name, 288..288, &Q4_0)).expect("empty").rows, 0);
    for importance in [vec![1.0; 159], vec![-1.0; 160], vec![f32::NAN; 160]] {
        let error = block_on(checkpoint.read_planes_weighted(name, 0..1, &Q4K, Some(&importance)));
        assert!(matches!(error, Err(WeightsError::Request { .. })));
    }
}

#[test]
fn a_missing_tensor_lists_near_names() {
    let checkpoint = open("qwen2_bias");
    let error = block_on(checkpoint.read_f32("model.layers.0.self_attn.query_proj.weight")).expect_err("no such");
    let text = error.to_string();
    assert!(text.contains("model.layers.0.self_attn.q_proj.weight"), "{text}");
}

#[test]
fn directories_that_are_not_checkpoints_say_what_to_do() {
    let error = DirectorySource::new("FreedomIntelligence/AceGPT-7B-chat").expect_err("a hub name").to_string();
    assert!(error.contains("download"), "{error}");
    assert!(DirectorySource::new("/no/such/place/at all").is_err());

    let temp = tempfile::tempdir().expect("temporary directory");
    let gguf = temp.path().join("model.gguf");
    std::fs::write(&gguf, b"GGUF").expect("written");
    let source = DirectorySource::new(&gguf).expect("the file and those beside it");
    let error = block_on(Checkpoint::open(Rc::new(source))).expect_err("cut off").to_string();
    assert!(error.contains("model.gguf is damaged"), "{error}");
    let single = temp.path().join("model.pt");
    std::fs::write(&single, b"x").expect("written");
    assert!(DirectorySource::new(&single).expect_err("a file").to_string().contains("pickle"));

    let in_directory = |file: &str| {
        let temp = tempfile::tempdir().expect("temporary directory");
        std::fs::write(temp.path().join(file), b"x").expect("written");
        let source = DirectorySource::new(temp.path()).expect("a directory");
        block_on(Checkpoint::open(Rc::new(source))).expect_err("no safetensors").to_string()
    };
    assert!(in_directory("model.gguf").contains("model.gguf is damaged"));
    assert!(in_directory("pytorch_model.bin").contains("config.json"));
    assert!(in_directory("model.pt").contains("pickle"));
    assert!(in_directory("readme").contains("model.safetensors"));
    assert!(in_directory("config.json").contains("model.safetensors"));
}

/// A header for one F32 tensor with the given values.
fn one_tensor(values: &[f32]) -> Vec<u8> {
    let size = values.len() * 4;
    let header = bayan_weights::safetensors::encode_header(
        &[("w", Dtype::F32, &[values.len() / 4, 4], size as u64)],
        &Default::default(),
    );
    header.into_iter().chain(values.iter().flat_map(|v| v.to_le_bytes())).collect()
}

#[test]
fn a_nan_is_named_with_its_place() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![0.5f32; 40];
        values[30] = bad;
        let source = MemorySource::new().with("config.json", &b"{}"[..]).with("model.safetensors", one_tensor(&values));
        let checkpoint = block_on(Checkpoint::open(Rc::new(source))).expect("sound");
        assert!(block_on(checkpoint.read_rows_f32("w", 0..7)).is_ok());
        for format in FORMATS {
            let error = block_on(checkpoint.read_planes("w", 6..10, *format)).expect_err("not finite");
            assert!(matches!(&error, WeightsError::NotFinite { tensor, index: 30, .. } if tensor == "w"), "{error}");
        }
    }
    let mut values = vec![0.5f32; 40];
    values[9] = 1e30;
    let source = MemorySource::new().with("config.json", &b"{}"[..]).with("model.safetensors", one_tensor(&values));
    let checkpoint = block_on(Checkpoint::open(Rc::new(source))).expect("sound");
    let error = block_on(checkpoint.read_planes("w", 1..10, &Q8_0)).expect_err("too large");
    assert!(matches!(error, WeightsError::Unrepresentable { index: 9, .. }), "{error}");
}
