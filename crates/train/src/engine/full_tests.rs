//! Full training against transformers' fixtures on this machine's device; embedding noise; submissions.

use std::rc::Rc;

use bayan_gpu::{Disable, Gpu, GpuOptions, block_on};
use bayan_models::{LoadOptions, open_to_train};
use bayan_tensor::ops::Hyper;
use bayan_weights::{Checkpoint, DirectorySource};
use serde_json::{Value, json};

use super::{Trainer, TrainerOptions, lora_grads, lora_train};
use crate::testing::path;
use crate::{MicroBatch, NamedArray, TrainedWeights};

fn gpu() -> Gpu {
    let options = GpuOptions { disable: Disable::parse("f16,dot").expect("known words"), ..GpuOptions::default() };
    block_on(Gpu::open(&options)).expect("a device")
}

fn trainer(gpu: &Gpu, model: &str, options: TrainerOptions) -> Result<Trainer, bayan_models::ModelError> {
    let source = DirectorySource::new(path(&["models", model])).expect("a directory");
    let checkpoint = block_on(Checkpoint::open(Rc::new(source))).expect("a checkpoint");
    let options = TrainerOptions { context: 64, ..options };
    let (decoder, parameters) =
        block_on(open_to_train(&checkpoint, Some(gpu), &LoadOptions { context: 64 }, &mut |_, _| {}))?;
    Ok(Trainer::full(Some(gpu), decoder, parameters, options).expect("a trainer"))
}

fn arrays(weights: TrainedWeights) -> Vec<NamedArray> {
    let TrainedWeights::Full(arrays) = weights else { panic!("all parameters") };
    arrays
}

/// The largest relative error of any tensor, estimated from its norm and its products with the fixed vectors of
/// `make_full.py`.
fn worst(found: &[NamedArray], expected: &Value) -> (f64, String) {
    let expected = expected.as_object().expect("tensors");
    assert_eq!(found.len(), expected.len(), "tensors");
    let mut worst = (0.0, String::new());
    for array in found {
        let want = expected.get(&array.name).unwrap_or_else(|| panic!("no {}", array.name));
        let norm = want["norm"].as_f64().expect("a length");
        let mut square = (array.values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt() - norm).powi(2);
        for (k, probe) in want["probes"].as_array().expect("products").iter().enumerate() {
            let angle = |i: usize| 0.7 * (k + 1) as f64 * i as f64 + k as f64;
            let product: f64 = array.values.iter().enumerate().map(|(i, &v)| f64::from(v) * angle(i).cos()).sum();
            square += (product - probe.as_f64().expect("a number")).powi(2);
        }
        // An independent error of norm e changes each product by about e / √2.
        let error = (square / 2.0).sqrt() / norm.max(1e-12);
        if error > worst.0 {
            worst = (error, array.name.clone());
        }
    }
    worst
}

fn check(model: &str) {
    let gpu = gpu();
    let place = tempfile::tempdir().expect("a directory");
    let text = std::fs::read_to_string(path(&["full", &format!("{model}.json")])).expect("a fixture");
    let expected: Value = serde_json::from_str(&text).expect("JSON");
    for recompute in [true, false] {
        // A small budget: several chunks of the vocabulary.
        let options = TrainerOptions {
            recompute,
            logits_budget: if recompute { 1 } else { 16 << 20 },
            ..TrainerOptions::default()
        };
        let mut trainer = trainer(&gpu, model, options).expect("a model that can be trained");
        let initial = block_on(trainer.weights()).expect("weights");
        let request = json!({"id": "g", "batch": expected["micro_batches"][0], "out_dir": place.path()});
        let answer = block_on(lora_grads(&mut trainer, &initial, &request)).expect("gradients");
        let (loss, want) = (answer["loss"].as_f64().expect("a loss"), expected["loss"].as_f64().expect("a loss"));
        let batch = super::conformance::batch(&expected["micro_batches"][0]).expect("a batch");
        block_on(trainer.accumulate(&batch, 1.0 / batch.target_count() as f64)).expect("gradients");
        let gradients = arrays(block_on(trainer.gradients()).expect("gradients"));
        let (error, name) = worst(&gradients, &expected["gradients"]);
        println!(
            "{model}, recompute {recompute}: loss off by {:.1e}, gradients by {error:.1e} ({name}), {:?}",
            (loss - want).abs() / want,
            trainer.cost()
        );
        assert!((loss - want).abs() / want < 1e-5, "loss {loss}, transformers has {want}");
        assert!(error < 1e-4, "the gradient of {name} is off by {error:.1e}");
        let request = json!({"id": "t", "micro_batches": expected["micro_batches"], "optimizer": expected["optimizer"], "out_dir": place.path()});
        let answer = block_on(lora_train(&mut trainer, &initial, &request)).expect("training");
        let pairs =
            answer["losses"].as_array().expect("losses").iter().zip(expected["losses"].as_array().expect("losses"));
        let off =
            pairs.map(|(a, b)| (a.as_f64().expect("a loss") - b.as_f64().expect("a loss")).abs()).fold(0.0, f64::max);
        let (error, name) = worst(&arrays(block_on(trainer.weights()).expect("weights")), &expected["final"]);
        println!("{model}: losses off by {off:.1e}, final weights by {error:.1e} ({name})");
        assert!(off < 3e-4, "a loss is off by {off:.1e}");
        assert!(error < 1e-4, "{name} is off by {error:.1e}");
    }
}

/// Checks every fourth fixture of `full/`: four tests, so that they run in parallel.
fn check_every_fourth(first: usize) {
    for model in crate::testing::names(&["full"]).iter().skip(first).step_by(4) {
        check(model);
    }
}

#[test]
fn all_parameters_train_as_in_transformers_1_of_4() {
    check_every_fourth(0);
}

#[test]
fn all_parameters_train_as_in_transformers_2_of_4() {
    check_every_fourth(1);
}

#[test]
fn all_parameters_train_as_in_transformers_3_of_4() {
    check_every_fourth(2);
}

#[test]
fn all_parameters_train_as_in_transformers_4_of_4() {
    check_every_fourth(3);
}

#[test]
fn every_architecture_that_can_be_trained_whole_has_a_fixture() {
    let kind = |model: &String| {
        let config = crate::testing::json(&path(&["models", model, "config.json"]));
        config["model_type"].as_str().expect("a type").to_owned()
    };
    let mut held: Vec<String> = crate::testing::names(&["full"]).iter().map(kind).collect();
    // transformers has no Jais; the loader changes values of Falcon-H1 and Qwen 3.5. They have tests below.
    held.extend(["jais", "falcon_h1", "qwen3_5_text"].map(str::to_owned));
    for architecture in bayan_models::supported() {
        assert!(held.iter().any(|kind| kind == architecture), "{architecture}");
    }
}

/// transformers has no Jais: its tensors, transposed ones included, are read back unchanged, and the loss changes along
/// each gradient as the gradient predicts.
#[test]
fn all_parameters_train_on_jais() {
    let gpu = gpu();
    let mut trainer = trainer(&gpu, "jais", TrainerOptions::default()).expect("a model that can be trained");
    let initial = arrays(block_on(trainer.weights()).expect("weights"));
    let source = DirectorySource::new(path(&["models", "jais"])).expect("a directory");
    let checkpoint = block_on(Checkpoint::open(Rc::new(source))).expect("a checkpoint");
    assert!(initial.len() + 1 == checkpoint.tensors().len(), "all but the slopes");
    for array in &initial {
        let stored = block_on(checkpoint.read_f32(&array.name)).expect("a tensor");
        assert!(
            array.values == stored && array.shape == checkpoint.require(&array.name).expect("a tensor").shape,
            "{}",
            array.name
        );
    }
    let batch = sequence(40);
    block_on(trainer.accumulate(&batch, 1.0 / 39.0)).expect("a loss");
    let gradients = arrays(block_on(trainer.gradients()).expect("gradients"));
    for (number, gradient) in gradients.iter().enumerate() {
        let norm = gradient.values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let step = 0.02;
        let [above, below] = [step, -step].map(|step| {
            let mut moved = initial.clone();
            moved[number]
                .values
                .iter_mut()
                .zip(&gradient.values)
                .for_each(|(w, &g)| *w += (step * f64::from(g) / norm) as f32);
            trainer.load_weights(&TrainedWeights::Full(moved)).expect("weights");
            let (sum, count) = block_on(trainer.evaluate(&batch)).expect("a loss");
            sum / count as f64
        });
        let slope = (above - below) / (2.0 * step);
        assert!(
            (slope - norm).abs() < 0.02 * norm + 3e-4,
            "{}: the loss rises by {slope}, its gradient has {norm}",
            gradient.name
        );
    }
}

#[test]
fn what_a_loader_computes_is_refused_by_name() {
    for model in ["falcon_h1", "qwen3_5"] {
        let Err(error) = trainer(&gpu(), model, TrainerOptions::default()) else { panic!("{model} was opened") };
        assert!(error.to_string().contains("A_log") && error.to_string().contains("--full"), "{error}");
    }
}

fn sequence(len: usize) -> MicroBatch {
    let ids: Vec<u32> = (0..len as u32).map(|t| 5 + t * t * 7 % 900).collect();
    let labels = ids.iter().enumerate().map(|(t, &id)| if t == 0 { -100 } else { id as i32 }).collect();
    MicroBatch { labels, positions: (0..len as u32).collect(), sequences: vec![0; len], starts: vec![0], ids }
}

/// The loss after each of three updates, and the submissions of a step.
fn losses(gpu: &Gpu, options: TrainerOptions) -> (Vec<f64>, usize) {
    let mut trainer = trainer(gpu, "qwen3_qknorm", options).expect("a model");
    let batch = sequence(40);
    let hyper = Hyper {
        learning_rate: 1e-3,
        betas: (0.9, 0.999),
        eps: 1e-8,
        weight_decay: 0.0,
        max_norm: 1.0,
        update: 0,
        loss_scale: 1.0,
    };
    let step = |trainer: &mut Trainer| {
        let loss = block_on(trainer.accumulate(&batch, 1.0 / 39.0)).expect("a loss");
        trainer.update(&hyper).expect("an update");
        loss
    };
    let found = (0..3).map(|_| step(&mut trainer)).collect();
    (found, trainer.submissions())
}

#[test]
fn short_submissions_give_the_same_bits() {
    let gpu = gpu();
    let (whole, one) = losses(&gpu, TrainerOptions::default());
    let (parts, many) = losses(&gpu, TrainerOptions { submission_work: 100_000, ..TrainerOptions::default() });
    assert_eq!(whole, parts);
    assert!(one == 1 && many > 10, "{one} and {many} submissions");
}

#[test]
fn embedding_noise_depends_on_the_seed_and_is_training_only() {
    let gpu = gpu();
    let of = |alpha: Option<f64>, seed: u64| {
        losses(&gpu, TrainerOptions { neftune: alpha, seed, ..TrainerOptions::default() }).0
    };
    let (plain, noisy) = (of(None, 1), of(Some(5.0), 1));
    assert_eq!(noisy, of(Some(5.0), 1));
    assert_ne!(noisy, of(Some(5.0), 2));
    assert_ne!(noisy[0], plain[0]);
    // Noise of nearly zero changes the losses by nearly zero: the size of the noise follows the setting.
    let faint = of(Some(1e-6), 1);
    assert!((faint[0] - plain[0]).abs() < 1e-4, "{faint:?} and {plain:?}");
    let mut trainer =
        trainer(&gpu, "qwen3_qknorm", TrainerOptions { neftune: Some(5.0), seed: 1, ..TrainerOptions::default() })
            .expect("a model");
    let (sum, count) = block_on(trainer.evaluate(&sequence(40))).expect("a loss");
    assert!((sum / count as f64 - plain[0]).abs() < 1e-5, "evaluation sees no noise");
}
