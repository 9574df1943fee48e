//! f16 against f32 on whole models: gradients, losses, memory, and what happens when the loss scale is too high.

use bayan_gpu::{Disable, Gpu, GpuOptions, block_on};
use bayan_models::Adapter;
use bayan_tensor::ops::Hyper;

use super::tests::{base, distance};
use super::{INITIAL_LOSS_SCALE, Trainer, TrainerOptions, new_adapter};
use crate::{MicroBatch, Recipe, Rng, TrainedWeights};

const HYPER: Hyper = Hyper {
    learning_rate: 2e-3,
    betas: (0.9, 0.999),
    eps: 1e-8,
    weight_decay: 0.01,
    max_norm: 1.0,
    update: 0,
    loss_scale: 1.0,
};

fn gpu(disable: &str) -> Gpu {
    block_on(Gpu::open(&GpuOptions { disable: Disable::parse(disable).expect("known words"), ..GpuOptions::default() }))
        .expect("a device")
}

/// A device with the kernel variants of real GPUs, f16 tiles included, whatever device the tests run on.
fn hardware() -> Gpu {
    let gpu = gpu("software,dot");
    assert!(gpu.capabilities().f16, "these tests need a device with f16");
    gpu
}

/// A trainer of an adapter with non-zero B matrices.
fn trainer(gpu: &Gpu, model: &str, options: &TrainerOptions) -> Trainer {
    let mut decoder = base(Some(gpu), model, "f32");
    let recipe = Recipe { alpha: 16.0, rank: 4, ..Recipe::default() };
    let mut adapter: Adapter =
        new_adapter(&mut *decoder, recipe.adapter_config().expect("a configuration"), &mut Rng::new(1, 1))
            .expect("an adapter");
    let mut rng = Rng::new(2, 2);
    adapter
        .modules
        .values_mut()
        .for_each(|module| module.b.iter_mut().for_each(|b| *b = (rng.uniform() * 0.1 - 0.05) as f32));
    Trainer::new(Some(gpu), decoder, &adapter, TrainerOptions { context: 256, ..options.clone() }).expect("a trainer")
}

fn batch(seed: usize) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for (number, len) in [70, 58].into_iter().enumerate() {
        batch.starts.push(batch.ids.len() as u32);
        batch.ids.extend((0..len).map(|t| ((seed * 31 + number * 7 + t * 3 + t * t % 5) % 200) as u32 + 3));
        batch.positions.extend(0..len as u32);
        batch.sequences.extend(std::iter::repeat_n(number as u32, len));
    }
    batch.labels =
        batch.ids.iter().zip(&batch.positions).map(|(&id, &p)| if p == 0 { -100 } else { id as i32 }).collect();
    batch
}

/// The loss of a batch, and the gradients by matrix.
fn gradients(trainer: &mut Trainer) -> (f64, Vec<(String, Vec<f32>)>) {
    let batch = batch(0);
    trainer.clear_gradients();
    let loss = block_on(trainer.accumulate(&batch, 1.0 / batch.target_count() as f64)).expect("a loss");
    let TrainedWeights::Adapter(found) = block_on(trainer.gradients()).expect("gradients") else {
        panic!("an adapter is trained")
    };
    let parts = found
        .modules
        .into_iter()
        .flat_map(|(name, module)| [(format!("{name}.A"), module.a), (format!("{name}.B"), module.b)]);
    (loss, parts.collect())
}

/// Compares loss, gradients and memory with f16 saved activations, and with f16 tiles too, to those in f32.
fn check(model: &str) {
    let (plain, hardware) = (gpu("f16,dot"), hardware());
    for recompute in [true, false] {
        let of = |gpu: &Gpu, f16: bool| {
            let mut trainer = trainer(gpu, model, &TrainerOptions { recompute, f16, ..TrainerOptions::default() });
            let found = gradients(&mut trainer);
            (found, trainer.cost().0)
        };
        let ((loss, wanted), in_f32) = of(&plain, false);
        for (name, gpu, bound) in [("kept", &plain, KEPT), ("kept and tiles", &hardware, TILES)] {
            if name != "kept" && !recompute {
                continue;
            }
            let ((found_loss, found), in_f16) = of(gpu, true);
            let relative = |((name, found), (wanted_name, wanted)): (&(String, Vec<f32>), &(String, Vec<f32>))| {
                assert_eq!(name, wanted_name);
                let (error, size) = distance(found, wanted);
                error / size
            };
            let worst = found.iter().zip(&wanted).map(relative).fold(0.0, f64::max);
            let off = (found_loss - loss).abs() / loss;
            println!(
                "{model}, {name}, recompute {recompute}: loss off by {off:.1e}, gradients by {worst:.1e}, {in_f16} bytes for {in_f32}"
            );
            // With checkpointing in a two-layer model the only f16 activation is the embedding, whose values f16 holds
            // exactly.
            assert!((worst > 1e-6 || recompute) && worst < bound, "a gradient is off by {worst:.1e}");
            assert!(off < 1e-4, "the loss is off by {off:.1e}");
            if name == "kept" {
                let part = in_f16 as f64 / in_f32 as f64;
                assert!(part < if recompute { 1.001 } else { 0.95 }, "{part:.2} of the memory");
            }
        }
    }
}

/// Largest relative error (L2) of a gradient with f16 saved activations, and with f16 tiles as well.
const KEPT: f64 = 1e-3;
const TILES: f64 = 4e-3;

#[test]
fn gradients_in_f16_on_llama() {
    check("llama3_gqa");
}

#[test]
fn gradients_in_f16_on_qwen3() {
    check("qwen3_qknorm");
}

#[test]
fn gradients_in_f16_on_gemma2() {
    check("gemma2_softcap");
}

/// The loss of each update over batches in turn; a skipped update is repeated.
fn losses(trainer: &mut Trainer, updates: usize) -> Vec<f64> {
    let update = |n: usize| loop {
        let batch = batch(n % 3);
        let loss = block_on(trainer.accumulate(&batch, 1.0 / batch.target_count() as f64)).expect("a loss");
        if block_on(trainer.try_update(&HYPER)).expect("an update").is_some() {
            break loss;
        }
    };
    (0..updates).map(update).collect()
}

#[test]
fn twenty_updates_in_f16_follow_those_in_f32() {
    let wanted = losses(&mut trainer(&gpu("f16,dot"), "llama3_gqa", &TrainerOptions::default()), 20);
    let options = TrainerOptions { f16: true, ..TrainerOptions::default() };
    let mut half = trainer(&hardware(), "llama3_gqa", &options);
    let found = losses(&mut half, 20);
    let worst = wanted.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!("losses from {:.4} to {:.4}, off by {worst:.1e}", wanted[0], wanted[19]);
    assert!(wanted[19] < wanted[0] - 0.1 && worst < 3e-3, "a loss is off by {worst:.1e}: {wanted:?} {found:?}");
    let scale = half.loss_scale().expect("a scale");
    assert_eq!((scale.scale, scale.good_updates, scale.skipped_updates), (INITIAL_LOSS_SCALE, 20, 0));
}

/// A loss scale at which f16 tiles overflow.
const HIGH: f64 = 67_108_864.0;

#[test]
fn an_overflow_is_skipped_and_the_run_goes_on() {
    let gpu = hardware();
    let options = TrainerOptions { f16: true, ..TrainerOptions::default() };
    let mut high = trainer(&gpu, "llama3_gqa", &TrainerOptions { loss_scale: HIGH, ..options.clone() });
    let first = trainer(&gpu, "llama3_gqa", &options);
    let weights = |trainer: &Trainer| block_on(trainer.weights()).expect("weights");
    let overflown = batch(0);
    block_on(high.accumulate(&overflown, 1.0 / overflown.target_count() as f64))
        .expect("the loss is finite all the same");
    assert_eq!(block_on(high.try_update(&HYPER)).expect("a skipped update"), None);
    assert!(weights(&high) == weights(&first) && high.updates() == 0, "nothing was updated");
    let found = losses(&mut high, 1);
    let scale = high.loss_scale().expect("a scale");
    assert_eq!((scale.scale, scale.good_updates), (HIGH / 2f64.powi(scale.skipped_updates as i32), 1));
    // From here on the run equals one that began with the lowered scale.
    let mut low = trainer(&gpu, "llama3_gqa", &TrainerOptions { loss_scale: scale.scale, ..options });
    assert_eq!(losses(&mut low, 1), found);
    assert_eq!(losses(&mut low, 3), losses(&mut high, 3));
    assert!(weights(&low) == weights(&high) && high.updates() == 4 && low.updates() == 4);
    // An infinity that no lower scale removes still ends the run.
    let mut lost =
        trainer(&gpu, "llama3_gqa", &TrainerOptions { f16: true, loss_scale: 1.0, ..TrainerOptions::default() });
    block_on(lost.accumulate(&overflown, 1e38)).expect_err("no loss is as large");
    block_on(lost.try_update(&HYPER)).expect_err("no scale is lower");
}
