//! The engine against PEFT's fixtures, on this machine's device, and quantized bases against the interpreter.

use std::path::PathBuf;
use std::rc::Rc;

use bayan_gpu::{Disable, Gpu, GpuOptions, block_on};
use bayan_models::{Adapter, Decoder, LoadOptions, open};
use bayan_tensor::ops::Hyper;
use bayan_weights::{Checkpoint, DirectorySource, Policy, format_by_name};
use serde_json::{Value, json};

use super::{Trainer, TrainerOptions, dpo, lora_grads, lora_train, new_adapter};
use crate::testing::{lora_expected, path};
use crate::{MicroBatch, Recipe, Rng, TrainedWeights};

fn gpu() -> Gpu {
    // f32 throughout: no f16 tiles, no int8 activations.
    let options = GpuOptions { disable: Disable::parse("f16,dot").expect("known words"), ..GpuOptions::default() };
    block_on(Gpu::open(&options)).expect("a device")
}

fn adapter(parts: &[&str]) -> Adapter {
    let source = DirectorySource::new(path(parts)).expect("a directory");
    block_on(Adapter::open(Rc::new(source))).expect("a fixture's adapter")
}

pub(super) fn base(gpu: Option<&Gpu>, model: &str, format: &str) -> Box<dyn Decoder> {
    let source = DirectorySource::new(path(&["models", model])).expect("a directory");
    let checkpoint = block_on(Checkpoint::open(Rc::new(source))).expect("a checkpoint");
    let policy = Policy::for_format(format_by_name(format).expect("a format"));
    block_on(open(&checkpoint, gpu, &LoadOptions { context: 256 }, Some(policy), &mut |_, _| {})).expect("a model")
}

fn trainer(gpu: Option<&Gpu>, case: &str, format: &str, recompute: bool) -> (Trainer, TrainedWeights, Value) {
    let expected = lora_expected(case);
    let initial = adapter(&["lora", case, "adapter_init"]);
    let model = expected["model"].as_str().expect("a name");
    let options = TrainerOptions { context: 256, recompute, ..TrainerOptions::default() };
    (
        Trainer::new(gpu, base(gpu, model, format), &initial, options).expect("a trainer"),
        TrainedWeights::Adapter(Box::new(initial)),
        expected,
    )
}

/// Tensors of a safetensors file by name.
fn tensors(file: PathBuf) -> Vec<(String, Vec<f32>)> {
    let bytes = std::fs::read(&file).expect("a file");
    let (directory, name) =
        (file.parent().expect("a parent"), file.file_stem().and_then(|s| s.to_str()).expect("a name"));
    assert!(!bytes.is_empty());
    // `Checkpoint` requires a configuration file; its content does not matter here.
    let files = tempfile::tempdir().expect("a directory");
    std::fs::copy(directory.join(format!("{name}.safetensors")), files.path().join("model.safetensors"))
        .expect("copied");
    std::fs::write(files.path().join("config.json"), "{}").expect("written");
    let source = DirectorySource::new(files.path()).expect("a directory");
    let checkpoint = block_on(Checkpoint::open(Rc::new(source))).expect("tensors");
    let names: Vec<String> = checkpoint.names().map(|name| name.to_string()).collect();
    names.into_iter().map(|name| (name.clone(), block_on(checkpoint.read_f32(&name)).expect("a tensor"))).collect()
}

pub(super) fn distance(a: &[f32], b: &[f32]) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let error: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    (error.sqrt(), b.iter().map(|&b| f64::from(b).powi(2)).sum::<f64>().sqrt())
}

fn worst_relative(found: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)]) -> f64 {
    assert_eq!(found.len(), expected.len(), "tensors");
    let relative = |(name, want): &(String, Vec<f32>)| {
        let got = found.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}"));
        let (error, size) = distance(&got.1, want);
        error / size
    };
    expected.iter().map(relative).fold(0.0, f64::max)
}

fn check_gradients(case: &str) {
    let gpu = gpu();
    let directory = tempfile::tempdir().expect("a directory");
    for recompute in [false, true] {
        let (mut trainer, initial, expected) = trainer(Some(&gpu), case, "f32", recompute);
        let request = json!({"id": "g", "batch": expected["micro_batches"][0], "out_dir": directory.path()});
        let answer = block_on(lora_grads(&mut trainer, &initial, &request)).expect("gradients");
        let (loss, want) =
            (answer["loss"].as_f64().expect("a loss"), expected["micro0"]["loss"].as_f64().expect("a loss"));
        let found = tensors(answer["grads_file"].as_str().expect("a file").into());
        let worst = worst_relative(&found, &tensors(path(&["lora", case, "grads_micro0.safetensors"])));
        println!(
            "{case} recompute {recompute}: loss off by {:.1e}, gradients by {worst:.1e}, (bytes, dispatches) {:?}",
            (loss - want).abs() / want,
            trainer.cost()
        );
        assert!((loss - want).abs() / want < 1e-4, "loss {loss}, PEFT has {want}");
        assert!(worst < 1e-3, "a gradient is off by {worst:.1e}");
    }
}

#[test]
fn gradients_are_those_of_peft_on_llama() {
    check_gradients("llama3_r8_all");
}

#[test]
fn gradients_are_those_of_peft_on_qwen2() {
    check_gradients("qwen2_r4_rslora");
}

/// Attention with a gate, and the gated delta rule; the fixture is computed in f64.
#[test]
fn gradients_are_those_of_peft_on_qwen3_5() {
    check_gradients("qwen3_5_r2");
}

fn check_training(case: &str) {
    let gpu = gpu();
    let directory = tempfile::tempdir().expect("a directory");
    let (mut trainer, initial, expected) = trainer(Some(&gpu), case, "f32", true);
    for mode in ["mean_of_means", "token_mean"] {
        let request = json!({"id": mode, "micro_batches": expected["micro_batches"], "optimizer": expected["optimizer"], "loss_normalization": mode, "out_dir": directory.path()});
        let started = std::time::Instant::now();
        let answer = block_on(lora_train(&mut trainer, &initial, &request)).expect("training");
        let losses: Vec<f64> = answer["losses"].as_array().expect("losses").iter().filter_map(Value::as_f64).collect();
        let log = expected["training"][mode]["log"].as_array().expect("a log");
        assert_eq!(losses.len(), log.len());
        let worst = losses
            .iter()
            .zip(log)
            .map(|(loss, want)| (loss - want["loss"].as_f64().expect("a loss")).abs())
            .fold(0.0, f64::max);
        println!("{case} {mode}: losses off by {worst:.1e} in {:.1?}", started.elapsed());
        assert!(worst < 3e-4, "{mode}: a loss is off by {worst:.1e}");
        if mode == "token_mean" {
            let found = tensors(answer["adapter_file"].as_str().expect("a file").into());
            let last = tensors(path(&["lora", case, "adapter_final", "adapter_model.safetensors"]));
            let first = tensors(path(&["lora", case, "adapter_init", "adapter_model.safetensors"]));
            let (mut error, mut moved) = (0.0, 0.0);
            for (name, want) in &last {
                let of =
                    |list: &[(String, Vec<f32>)]| list.iter().find(|(n, _)| n == name).expect("the tensor").1.clone();
                error += distance(&of(&found), want).0.powi(2);
                moved += distance(&of(&first), want).0.powi(2);
            }
            let relative = (error / moved).sqrt();
            println!("{case}: final adapter off by {relative:.1e} of its movement");
            assert!(relative < 3e-4, "the final adapter is off by {relative:.1e} of its movement");
        }
    }
}

#[test]
fn twenty_steps_are_those_of_peft_on_llama() {
    check_training("llama3_r8_all");
}

#[test]
fn twenty_steps_are_those_of_peft_on_qwen2() {
    check_training("qwen2_r4_rslora");
}

#[test]
fn twenty_steps_are_those_of_peft_on_qwen3_5() {
    check_training("qwen3_5_r2");
}

#[test]
fn preferences_are_those_of_peft() {
    let gpu = gpu();
    let directory = tempfile::tempdir().expect("a directory");
    let case = "dpo_llama3_r8";
    let (mut trainer, initial, expected) = trainer(Some(&gpu), case, "f32", true);
    let request = json!({"id": "d", "pairs": expected["pairs"], "beta": expected["beta"], "out_dir": directory.path()});
    let answer = block_on(dpo(&mut trainer, &initial, &request)).expect("preferences");
    let (loss, want) = (answer["loss"].as_f64().expect("a loss"), expected["loss"].as_f64().expect("a loss"));
    let found = tensors(answer["grads_file"].as_str().expect("a file").into());
    let worst = worst_relative(&found, &tensors(path(&["lora", case, "grads.safetensors"])));
    println!("{case}: loss off by {:.1e}, gradients by {worst:.1e}", (loss - want).abs() / want);
    assert!((loss - want).abs() / want < 1e-3 && worst < 5e-3, "loss {loss} for {want}, gradients off by {worst:.1e}");
}

/// A quantized base on the device against the interpreter over the same dequantized weights.
#[test]
fn quantized_bases_train_as_their_dequantized_weights() {
    let gpu = gpu();
    let directory = tempfile::tempdir().expect("a directory");
    for format in bayan_weights::FORMATS.iter().map(|format| format.name()).filter(|name| *name != "f32") {
        let mut found = Vec::new();
        for device in [Some(&gpu), None] {
            let (mut trainer, initial, mut expected) = trainer(device, "qwen2_r4_rslora", format, false);
            // One short sequence: the interpreter is slow.
            let mut batch = expected["micro_batches"][0].take();
            for field in ["input_ids", "labels", "attention_mask"] {
                batch[field].as_array_mut().expect("rows").truncate(1);
            }
            let request = json!({"id": format, "batch": batch, "out_dir": directory.path()});
            let answer = block_on(lora_grads(&mut trainer, &initial, &request)).expect("gradients");
            found.push((
                answer["loss"].as_f64().expect("a loss"),
                tensors(answer["grads_file"].as_str().expect("a file").into()),
            ));
        }
        let worst = worst_relative(&found[0].1, &found[1].1);
        println!("{format}: loss {} and {}, gradients off by {worst:.1e}", found[0].0, found[1].0);
        assert!(
            (found[0].0 - found[1].0).abs() < 1e-4 * found[1].0 && worst < 1e-3,
            "{format}: gradients off by {worst:.1e}"
        );
    }
}

/// Architectures beyond PEFT's fixtures; `models/tests/training.rs` checks their gradients.
#[test]
fn the_loss_falls_on_every_architecture() {
    let gpu = gpu();
    for model in crate::testing::one_of_each_architecture().iter().map(String::as_str) {
        let mut decoder = base(Some(&gpu), model, "q8_0");
        let config = Recipe { alpha: 16.0, rank: 4, ..Recipe::default() }.adapter_config().expect("a configuration");
        let adapter = new_adapter(&mut *decoder, config, &mut Rng::new(1, 1)).expect("an adapter");
        let options = TrainerOptions { context: 256, ..TrainerOptions::default() };
        let mut trainer = Trainer::new(Some(&gpu), decoder, &adapter, options).expect("a trainer");
        let ids: Vec<u32> = (0..24).map(|t| 5 + t * t * 7 % 900).collect();
        let labels = ids.iter().enumerate().map(|(t, &id)| if t == 0 { -100 } else { id as i32 }).collect();
        let batch = MicroBatch { labels, positions: (0..24).collect(), sequences: vec![0; 24], starts: vec![0], ids };
        let hyper = Hyper {
            learning_rate: 3e-3,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.0,
            max_norm: 1.0,
            update: 0,
            loss_scale: 1.0,
        };
        let losses: Vec<f64> = (0..4)
            .map(|_| {
                let loss =
                    block_on(trainer.accumulate(&batch, 1.0 / 23.0)).unwrap_or_else(|error| panic!("{model}: {error}"));
                trainer.update(&hyper).expect("an update");
                loss
            })
            .collect();
        println!("{model}: {losses:?}");
        assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{model}: {losses:?}");
    }
}

#[test]
fn the_slope_of_the_loss_confirms_the_gradients() {
    let gpu = gpu();
    for case in ["llama3_r8_all", "qwen2_r4_rslora"] {
        let (mut trainer, initial, expected) = trainer(Some(&gpu), case, "f32", true);
        let sample = &expected["samples"][0];
        let ids: Vec<u32> = serde_json::from_value(sample["ids"].clone()).expect("ids");
        let labels: Vec<i32> = serde_json::from_value(sample["labels"].clone()).expect("labels");
        let (positions, sequences) = ((0..ids.len() as u32).collect(), vec![0; ids.len()]);
        let batch = MicroBatch { ids, labels, positions, sequences, starts: vec![0] };
        let checks = block_on(trainer.check_gradients(&batch)).expect("a check");
        for check in checks {
            let error = (check.norm - check.slope).abs() / check.norm;
            assert!(error < 0.01 && check.agrees(), "{case}: {check:?}");
            assert!(!super::GradientCheck { norm: 4571.0, slope: 19.1, ..check }.agrees());
        }
        assert_eq!(block_on(trainer.weights()).expect("weights"), initial, "the weights are as before");
    }
}
