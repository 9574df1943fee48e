//! Writing checkpoints: round trips, shards, quantization, and what remains after a failure.

use bayan_weights::formats::{F16, F32, Q4_0, Q4K, Q8_0};
use bayan_weights::{
    Checkpoint, CheckpointWriter, DirectorySource, FORMATS, Planes, Policy, Stored, TensorSpec, WeightsError,
    WriteOptions, quantize_checkpoint,
};
use pollster::block_on;
use std::path::{Path, PathBuf};
use std::rc::Rc;

fn open(path: &Path) -> Checkpoint {
    let source = DirectorySource::new(path).expect("a directory");
    block_on(Checkpoint::open(Rc::new(source))).expect("a sound checkpoint")
}

fn fixture(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(model)
}

fn names_in(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .expect("listed")
        .map(|entry| entry.expect("listed").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

fn wave(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin() * 0.1).collect()
}

fn plan(name: &str, shape: &[usize], format: &'static dyn bayan_weights::Format) -> TensorSpec {
    TensorSpec { name: name.to_owned(), shape: shape.to_vec(), format }
}

/// One tensor of every format, odd sizes, one empty; written in uneven pieces.
fn write_all_formats(directory: &Path, options: &WriteOptions) -> Result<(), WeightsError> {
    let mut plans: Vec<TensorSpec> =
        FORMATS.iter().map(|f| plan(&format!("{}.weight", f.name()), &[7, 45], *f)).collect();
    plans.insert(2, plan("empty.weight", &[0, 45], &Q8_0));
    plans.push(plan("scalar", &[], &F32));
    let mut writer = CheckpointWriter::create(directory, plans, options)?;
    for format in FORMATS {
        for rows in [0..3, 3..7] {
            let mut planes = Planes::new(*format, 45);
            planes.push_rows(&wave(7 * 45)[rows.start * 45..rows.end * 45], None).expect("the values fit");
            writer.write(&format!("{}.weight", format.name()), &planes)?;
        }
    }
    let mut planes = Planes::new(&F32, 1);
    planes.push_rows(&[3.5], None).expect("fits");
    writer.write("scalar", &planes)?;
    writer.write_file("config.json", b"{}")?;
    writer.finish()
}

#[test]
fn every_format_round_trips_through_files() {
    for max_shard_bytes in [u64::MAX, 2000, 1] {
        let temp = tempfile::tempdir().expect("temporary directory");
        let directory = temp.path().join("deep/er/model");
        let options = WriteOptions { max_shard_bytes, ..WriteOptions::default() };
        write_all_formats(&directory, &options).expect("written");
        assert_eq!(names_in(directory.parent().expect("a parent")), ["model"], "nothing partial is left");
        let checkpoint = open(&directory);
        assert_eq!(checkpoint.names().count(), FORMATS.len() + 2);
        for format in FORMATS {
            let name = format!("{}.weight", format.name());
            let entry = checkpoint.require(&name).expect("there");
            assert_eq!(entry.shape, [7, 45]);
            let mut planes = Planes::new(*format, 45);
            planes.push_rows(&wave(7 * 45), None).expect("the values fit");
            let read = block_on(checkpoint.read_planes(&name, 0..7, *format)).expect("read");
            assert_eq!(read.bytes, planes.bytes, "{name}");
            assert_eq!(block_on(checkpoint.read_f32(&name)).expect("read"), planes.dequantize());
            let rows = block_on(checkpoint.read_rows_f32(&name, 2..5)).expect("read");
            assert_eq!(rows, planes.dequantize()[90..225]);
        }
        assert_eq!(block_on(checkpoint.read_f32("scalar")).expect("read"), [3.5]);
        assert_eq!(checkpoint.require("empty.weight").expect("there").shape, [0, 45]);
        let files = names_in(&directory).len();
        assert!(if max_shard_bytes == u64::MAX { files == 2 } else { files > 3 }, "{files} files");
        // The file is plain safetensors for any other reader.
        for name in names_in(&directory).iter().filter(|name| name.ends_with(".safetensors")) {
            let bytes = std::fs::read(directory.join(name)).expect("read");
            safetensors::SafeTensors::deserialize(&bytes).expect("sound");
        }
    }
}

/// Replaces a text of the header by one as long, which occurs once.
fn replace(bytes: &mut [u8], from: &str, to: &str) {
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
    assert_eq!((places.len(), from.len()), (1, to.len()), "{from} in the header");
    bytes[places[0]..][..to.len()].copy_from_slice(to.as_bytes());
}

/// Until version 2, q6_k had other scales: such a file is refused and says what to do.
#[test]
fn q6_k_of_version_2_is_refused() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let directory = temp.path().join("model");
    write_all_formats(&directory, &WriteOptions::default()).expect("written");
    let file = directory.join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("read");
    replace(&mut bytes, r#"\"version\":3"#, r#"\"version\":2"#);
    std::fs::write(&file, &bytes).expect("written");
    let source = DirectorySource::new(&directory).expect("a directory");
    let error = block_on(Checkpoint::open(Rc::new(source))).expect_err("another q6_k").to_string();
    assert!(error.contains("q6_k.weight") && error.contains("quantize the original model again"), "{error}");
}

/// In version 1 of the description, today's q4_1 was called q4_k.
#[test]
fn files_of_version_1_are_read() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let directory = temp.path().join("model");
    let q4_1 = bayan_weights::format_by_name("q4_1").expect("a format");
    let mut planes = Planes::new(q4_1, 300);
    planes.push_rows(&wave(3 * 300), None).expect("the values fit");
    let options = WriteOptions::default();
    let mut writer = CheckpointWriter::create(&directory, vec![plan("a", &[3, 300], q4_1)], &options).expect("begun");
    writer.write("a", &planes).expect("fits");
    writer.write_file("config.json", b"{}").expect("written");
    writer.finish().expect("complete");
    let file = directory.join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("read");
    replace(&mut bytes, r#"\"version\":3"#, r#"\"version\":1"#);
    replace(&mut bytes, r#"\"q4_1\""#, r#"\"q4_k\""#);
    std::fs::write(&file, &bytes).expect("written");
    let checkpoint = open(&directory);
    let stored = checkpoint.require("a").expect("there").stored;
    assert!(matches!(stored, Stored::Planes(format) if format.name() == "q4_1"), "{stored:?}");
    assert_eq!(block_on(checkpoint.read_f32("a")).expect("read"), planes.dequantize());
}

/// A unit of shared scales that is not finite is found.
#[test]
fn shared_scales_are_finite() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let directory = temp.path().join("model");
    let mut planes = Planes::new(&Q4K, 512);
    planes.push_rows(&wave(2 * 512), None).expect("the values fit");
    let infinite = planes.bytes[1].len() - 14;
    planes.bytes[1][infinite..infinite + 2].copy_from_slice(&[0, 0x7c]);
    let plans = vec![plan("a", &[2, 512], &Q4K)];
    let mut writer = CheckpointWriter::create(&directory, plans, &WriteOptions::default()).expect("begun");
    writer.write("a", &planes).expect("fits");
    writer.write_file("config.json", b"{}").expect("written");
    writer.finish().expect("complete");
    let error = block_on(open(&directory).read_planes("a", 0..2, &Q4K)).expect_err("an infinite minimum");
    assert!(matches!(error, WeightsError::NotFinite { .. }), "{error}");
}

#[test]
fn stored_formats_are_not_quantized_twice() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let directory = temp.path().join("model");
    write_all_formats(&directory, &WriteOptions::default()).expect("written");
    let checkpoint = open(&directory);
    let error = block_on(checkpoint.read_planes("q4_0.weight", 0..7, &Q4K)).expect_err("twice");
    assert!(matches!(error, WeightsError::Requantize { stored: "q4_0", wanted: "q4_k", .. }), "{error}");
    let dense = block_on(checkpoint.read_planes("q4_0.weight", 0..7, &F32)).expect("dense is exact");
    assert_eq!(dense.dequantize(), block_on(checkpoint.read_f32("q4_0.weight")).expect("read"));
}

#[test]
fn unfinished_writers_leave_nothing() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let directory = temp.path().join("model");
    let plans = vec![plan("a", &[2, 32], &Q4_0), plan("b", &[2], &F32)];
    let rows = |count: usize, format, k| {
        let mut planes = Planes::new(format, k);
        planes.push_rows(&wave(count * k), None).expect("the values fit");
        planes
    };
    let mut writer = CheckpointWriter::create(&directory, plans, &WriteOptions::default()).expect("begun");
    assert_eq!(names_in(temp.path()).len(), 1);
    assert!(!directory.exists());
    for (name, planes) in [
        ("b", rows(1, &F32 as &'static dyn bayan_weights::Format, 2)),
        ("a", rows(1, &Q8_0, 32)),
        ("a", rows(1, &Q4_0, 64)),
        ("a", rows(3, &Q4_0, 32)),
    ] {
        assert!(matches!(writer.write(name, &planes), Err(WeightsError::Request { .. })));
    }
    assert!(writer.write_file("../config.json", b"{}").is_err());
    assert!(writer.write_file("model.safetensors", b"{}").is_err());
    writer.write("a", &rows(2, &Q4_0, 32)).expect("fits");
    assert!(writer.finish().is_err(), "b has no rows");
    assert!(names_in(temp.path()).is_empty(), "{:?}", names_in(temp.path()));
    let twice = vec![plan("a", &[2, 32], &Q4_0), plan("a.codes", &[2], &F32)];
    assert!(CheckpointWriter::create(&directory, twice, &WriteOptions::default()).is_err());
    assert!(names_in(temp.path()).is_empty());
}

#[test]
fn only_checkpoints_are_overwritten_and_only_on_request() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let directory = temp.path().join("model");
    let ask = WriteOptions { overwrite: true, ..WriteOptions::default() };
    std::fs::create_dir(&directory).expect("made");
    write_all_formats(&directory, &WriteOptions::default()).expect("an empty directory is fine");
    std::fs::write(directory.join("old"), b"x").expect("written");
    assert!(write_all_formats(&directory, &WriteOptions::default()).is_err());
    assert!(directory.join("old").exists());
    write_all_formats(&directory, &ask).expect("a checkpoint may be replaced");
    assert!(!directory.join("old").exists());
    assert_eq!(names_in(temp.path()), ["model"]);

    let precious = temp.path().join("precious");
    std::fs::create_dir(&precious).expect("made");
    std::fs::write(precious.join("thesis.txt"), b"x").expect("written");
    assert!(write_all_formats(&precious, &ask).is_err(), "not a checkpoint");
    std::fs::write(precious.join("config.json"), b"{}").expect("written");
    std::fs::create_dir(precious.join("photos")).expect("made");
    assert!(write_all_formats(&precious, &ask).is_err(), "directories inside");
    assert!(precious.join("thesis.txt").exists());
    assert!(write_all_formats(&precious.join("thesis.txt"), &ask).is_err(), "a file");
    assert!(write_all_formats(Path::new("/"), &ask).is_err());
    assert_eq!(names_in(temp.path()), ["model", "precious"]);
}

#[test]
fn checkpoints_are_quantized_as_the_policy_says() {
    let limits = [("f16", 4e-4), ("q8_0", 8e-3), ("q4_k", 9e-2), ("q4_0", 11e-2)];
    for (format, limit) in limits {
        let temp = tempfile::tempdir().expect("temporary directory");
        let out = temp.path().join("out");
        let original = open(&fixture("llama3_gqa"));
        let policy = Policy::for_format(bayan_weights::format_by_name(format).expect("known"));
        let mut last = (0, 0);
        let options = WriteOptions { max_shard_bytes: 100_000, ..WriteOptions::default() };
        let report = block_on(quantize_checkpoint(&original, &out, &policy, &options, &mut |progress| {
            assert!(progress.weights_done >= last.0);
            last = (progress.weights_done, progress.weights_total);
        }))
        .expect("quantized");
        assert!(last.0 == last.1 && last.0 == report.weights(), "{last:?}");
        let worst = report.tensors.iter().map(|t| t.relative_error).fold(0.0, f64::max);
        println!("{format}: {:.3} bits a weight, largest relative error {worst:.4}", report.bits_per_weight());
        assert!(worst < limit, "{format}: {worst}");
        let quantized = open(&out);
        assert_eq!(quantized.size_bytes(), report.size_bytes());
        assert_eq!(quantized.names().count(), original.names().count());
        for entry in original.tensors() {
            let new = quantized.require(&entry.name).expect("there");
            assert_eq!(new.shape, entry.shape);
            let wanted = policy.format_for(&entry.name, &entry.shape);
            match new.stored {
                Stored::Planes(format) => assert_eq!(format.name(), wanted.name()),
                Stored::Dense(dtype) => assert_eq!(wanted.planes()[0].dtype, dtype),
                Stored::Foreign(foreign) => panic!("{} was written as {}", new.name, foreign.name),
            }
            let direct = block_on(original.read_planes(&entry.name, 0..entry.rows(), wanted)).expect("read");
            let stored = block_on(quantized.read_planes(&entry.name, 0..entry.rows(), wanted)).expect("read");
            assert_eq!(direct.bytes, stored.bytes, "{}", entry.name);
        }
        let method = quantized.config().pointer("/quantization_config/quant_method").and_then(|m| m.as_str());
        assert_eq!(method, (format != "f16").then_some("bayan"));
        assert_eq!(quantized.config()["rope_scaling"], original.config()["rope_scaling"]);
        assert_eq!(
            block_on(quantized.text("tokenizer.json")).expect("read"),
            block_on(original.text("tokenizer.json")).expect("read")
        );
        let again = block_on(quantize_checkpoint(&quantized, &out, &policy, &options, &mut |_| {}));
        assert!(again.is_err(), "onto itself");
    }
}

#[test]
fn exceptions_and_importance_reach_the_quantizer() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let original = open(&fixture("qwen2_bias"));
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut policy = Policy::for_format(&Q4_0);
    policy.exceptions.insert("model.layers.0.mlp.gate_proj.weight".to_owned(), &F16);
    let importance: Vec<f32> = (0..192).map(|i| if i % 8 == 0 { 1000.0 } else { 0.001 }).collect();
    policy.importance.insert(name.to_owned(), importance);
    let run = |policy: &Policy, out: &str| {
        let out = temp.path().join(out);
        block_on(quantize_checkpoint(&original, &out, policy, &WriteOptions::default(), &mut |_| {}))
            .expect("quantized");
        open(&out)
    };
    let guided = run(&policy, "guided");
    policy.importance.clear();
    let blind = run(&policy, "blind");
    assert!(matches!(guided.require("model.layers.0.mlp.gate_proj.weight").expect("there").stored, Stored::Dense(_)));
    let exact = block_on(original.read_f32(name)).expect("read");
    let error = |checkpoint: &Checkpoint| -> f32 {
        let values = block_on(checkpoint.read_f32(name)).expect("read");
        values.iter().zip(&exact).step_by(8).map(|(a, b)| (a - b).powi(2)).sum()
    };
    assert!(error(&guided) < 0.9 * error(&blind), "{} against {}", error(&guided), error(&blind));
    policy.importance.insert(name.to_owned(), vec![1.0; 3]);
    let out = temp.path().join("bad");
    let bad = block_on(quantize_checkpoint(&original, &out, &policy, &WriteOptions::default(), &mut |_| {}));
    assert!(matches!(bad, Err(WeightsError::Request { .. })));
    assert_eq!(names_in(temp.path()), ["blind", "guided"], "the failed run left nothing");
}

/// The shard is replaced by the device that is always full, so that the system refuses the write.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let directory = temp.path().join("model");
    write_all_formats(&directory, &WriteOptions::default()).expect("written");
    let before = std::fs::read(directory.join("model.safetensors")).expect("read");
    let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
    let mut writer = CheckpointWriter::create(&directory, vec![plan("a", &[64, 64], &F32)], &options).expect("begun");
    let partial = names_in(temp.path()).into_iter().find(|name| name.contains("partial")).expect("a partial directory");
    let shard = temp.path().join(partial).join("model.safetensors");
    std::fs::remove_file(&shard).expect("removed");
    std::os::unix::fs::symlink("/dev/full", &shard).expect("linked");
    let mut planes = Planes::new(&F32, 64);
    planes.push_rows(&wave(64 * 64), None).expect("the values fit");
    let error = writer.write("a", &planes).expect_err("no space");
    assert!(matches!(error, WeightsError::Io { action: "write", .. }), "{error}");
    drop(writer);
    assert_eq!(names_in(temp.path()), ["model"]);
    assert_eq!(std::fs::read(directory.join("model.safetensors")).expect("read"), before);
}
