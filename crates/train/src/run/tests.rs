//! Whole runs on a small model: stopping and resuming bit for bit, values that are not finite, best weights,
//! preferences.

use std::path::Path;
use std::rc::Rc;

use bayan_gpu::{Disable, Gpu, GpuOptions, block_on};
use bayan_models::{LoadOptions, open};
use bayan_weights::{Checkpoint, DirectorySource, MemorySource};

use super::*;
use crate::checkpoint::{CheckpointFiles, Checkpoints, decode};
use crate::engine::{TrainerOptions, new_adapter};
use crate::render::Tokens;
use crate::{Dataset, Rng, SaveDtype};

fn gpu() -> Gpu {
    let options = GpuOptions { disable: Disable::parse("f16,dot").expect("known words"), ..GpuOptions::default() };
    block_on(Gpu::open(&options)).expect("a device")
}

fn checkpoint(model: &str) -> Checkpoint {
    let source = DirectorySource::new(crate::testing::path(&["models", model])).expect("a directory");
    block_on(Checkpoint::open(Rc::new(source))).expect("a checkpoint")
}

fn recipe(more: &str) -> Recipe {
    let text = format!("rank = 4\nbatch_size = 2\nmax_seq_length = 256\nlearning_rate = 2e-3\nseed = 3\n{more}");
    Recipe::from_file("r.toml", &text, serde_json::Map::new()).expect("a recipe")
}

/// `count` sequences of different lengths with predictable next tokens.
fn dataset(count: usize, longest: usize) -> Dataset {
    let sequence = |n: usize| {
        let len = longest / 2 + n * 5 % (longest / 2 + 1);
        Tokens {
            ids: (0..len).map(|t| ((n * 7 + t * 3) % 200) as u32 + 3).collect(),
            trained: (0..len).map(|t| t > 2).collect(),
        }
    };
    Dataset::from_sequences(&(0..count).map(sequence).collect::<Vec<_>>())
}

/// Long sequences with few trained tokens, and shorter ones with only trained tokens.
fn uneven(count: usize, longest: usize) -> Dataset {
    let sequence = |n: usize| {
        let len = if n.is_multiple_of(2) { longest } else { longest * 3 / 4 };
        Tokens {
            ids: (0..len).map(|t| ((n * 7 + t * 3) % 200) as u32 + 3).collect(),
            trained: (0..len).map(|t| n % 2 == 1 || t + 4 > len).collect(),
        }
    };
    Dataset::from_sequences(&(0..count).map(sequence).collect::<Vec<_>>())
}

fn data(valid: usize) -> RunData {
    let valid = (valid > 0).then(|| Units::new(dataset(valid, 20), None));
    RunData {
        train: Units::new(dataset(7, 24), None),
        valid,
        report: Default::default(),
        valid_report: None,
        shape: None,
    }
}

/// Records losses, and stops after a given number of steps.
#[derive(Default)]
struct Notes {
    losses: Vec<(u64, u64)>,
    evaluations: Vec<f64>,
    stop_after: Option<u64>,
    stopping: bool,
}

impl Observer for Notes {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Step { entry, .. } => {
                self.losses.push((entry.step, entry.loss.expect("a loss").to_bits()));
                self.stopping = self.stop_after == Some(entry.step + 1);
            }
            Event::Evaluated { entry, .. } => self.evaluations.push(entry.eval_loss.expect("a loss")),
            _ => {}
        }
    }

    fn stop(&mut self) -> bool {
        self.stopping
    }
}

/// A loss scale at which f16 tiles overflow, so that a run must lower it.
const HIGH: f64 = 67_108_864.0;

fn trainer(gpu: &Gpu, checkpoint: &Checkpoint, recipe: &Recipe) -> Trainer {
    let options = TrainerOptions {
        context: 64,
        recompute: recipe.grad_checkpoint,
        seed: recipe.seed,
        neftune: recipe.neftune_noise_alpha,
        f16: recipe.f16,
        loss_scale: HIGH,
        ..TrainerOptions::default()
    };
    if recipe.full {
        let opened =
            block_on(bayan_models::open_to_train(checkpoint, Some(gpu), &LoadOptions { context: 64 }, &mut |_, _| {}));
        let (decoder, parameters) = opened.expect("a model");
        return Trainer::full(Some(gpu), decoder, parameters, options).expect("a trainer");
    }
    let base = BaseInfo::of(checkpoint, recipe, None).expect("a base");
    let mut decoder =
        block_on(open(checkpoint, Some(gpu), &LoadOptions { context: 64 }, None, &mut |_, _| {})).expect("a model");
    let adapter = new_adapter(&mut *decoder, base.adapter, &mut Rng::new(recipe.seed, 1)).expect("an adapter");
    Trainer::new(Some(gpu), decoder, &adapter, options).expect("a trainer")
}

fn go(gpu: &Gpu, recipe: &Recipe, data: &RunData, output: &Path, notes: &mut Notes) -> Result<RunSummary, RunError> {
    let checkpoint = checkpoint("llama3_gqa");
    let resumed = resumable(output, recipe)?;
    let mut store = DirectoryStore::new(output, recipe.keep_last, "test");
    block_on(Run { recipe, data }.start(&mut trainer(gpu, &checkpoint, recipe), resumed, &mut store, notes))
}

#[test]
fn a_stopped_run_goes_on_as_if_it_had_never_stopped() {
    let (gpu, place) = (gpu(), tempfile::tempdir().unwrap());
    let recipe =
        recipe("max_steps = 7\ndropout = 0.1\nwarmup_steps = 2\ngradient_accumulation_steps = 2\neval_every = 3");
    let data = data(3);
    let mut whole = Notes::default();
    let ended = go(&gpu, &recipe, &data, &place.path().join("whole"), &mut whole).unwrap();
    assert_eq!((ended.end, ended.steps, whole.losses.len(), whole.evaluations.len()), (EndReason::Done, 7, 7, 3));
    let (first, last) = (f64::from_bits(whole.losses[0].1), f64::from_bits(whole.losses[6].1));
    assert!(last < first, "the loss went from {first} to {last}");

    let parts = place.path().join("parts");
    let mut notes = Notes { stop_after: Some(3), ..Notes::default() };
    assert_eq!(go(&gpu, &recipe, &data, &parts, &mut notes).unwrap().end, EndReason::Interrupted);
    notes.stop_after = None;
    let resumed = go(&gpu, &recipe, &data, &parts, &mut notes).unwrap();
    assert_eq!(notes.losses, whole.losses);
    assert_eq!(notes.evaluations, whole.evaluations);
    assert_eq!((resumed.weights, resumed.tokens, resumed.best), (ended.weights, ended.tokens, ended.best));
    let log = |of: &str| {
        crate::log::read_log(&place.path().join(of))
            .unwrap()
            .iter()
            .map(|e| (e.step, e.loss, e.eval_loss, e.grad_norm))
            .collect::<Vec<_>>()
    };
    assert_eq!(log("parts"), log("whole"));
    assert!(parts.join("loss.png").is_file() && parts.join("loss.html").is_file());

    let other = Recipe { learning_rate: 1e-3, ..recipe.clone() };
    assert!(resumable(&parts, &other).unwrap_err().to_string().contains("learning_rate"));
    let fewer = RunData { train: Units::new(dataset(6, 24), None), ..data };
    assert!(go(&gpu, &recipe, &fewer, &parts, &mut notes).unwrap_err().to_string().contains("other examples"));
}

/// As in a browser: checkpoints are files in memory, and the speed is measured before the first step.
#[test]
fn a_run_in_memory_is_the_run_in_a_directory() {
    let (gpu, place) = (gpu(), tempfile::tempdir().unwrap());
    let recipe = recipe("max_steps = 5\ndropout = 0.1\nsave_every = 2");
    let (data, base) = (data(0), checkpoint("llama3_gqa"));
    let ended = go(&gpu, &recipe, &data, place.path(), &mut Notes::default()).unwrap();
    let run = Run { recipe: &recipe, data: &data };
    let start = |resumed, notes: &mut Notes, saved: &mut Vec<(u64, CheckpointFiles)>| {
        let mut trainer = trainer(&gpu, &base, &recipe);
        assert!(block_on(run.measure(&mut trainer)).unwrap() > Duration::ZERO);
        let mut on_saved = |step, files| {
            saved.push((step, files));
            Ok(())
        };
        block_on(run.start(&mut trainer, resumed, &mut MemoryStore::new(&mut on_saved), notes)).unwrap()
    };
    let mut saved = Vec::new();
    let mut notes = Notes { stop_after: Some(3), ..Notes::default() };
    assert_eq!(start(None, &mut notes, &mut saved).end, EndReason::Interrupted);
    assert_eq!(saved.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 3]);
    let source = |files: &CheckpointFiles| {
        let with = |source: MemorySource, (name, bytes): &(&'static str, Vec<u8>)| source.with(*name, bytes.clone());
        Rc::new(files.iter().fold(MemorySource::new(), with))
    };
    let resumed = block_on(decode(source(&saved[1].1), Path::new("checkpoint-3"))).unwrap();
    check_recipe(&resumed, &recipe).unwrap();
    assert_eq!(start(Some(resumed), &mut Notes::default(), &mut saved).weights, ended.weights);
    for (name, bytes) in &saved.last().expect("the last checkpoint").1 {
        assert_eq!(*bytes, std::fs::read(place.path().join("checkpoint-5").join(name)).unwrap(), "{name}");
    }
    let damaged: CheckpointFiles = saved[0].1.iter().map(|(name, bytes)| (*name, bytes[..9].to_vec())).collect();
    assert!(block_on(decode(source(&damaged), Path::new("damaged"))).unwrap_err().to_string().contains("damaged"));
    assert!(block_on(decode(source(&Vec::new()), Path::new("none"))).unwrap_err().to_string().contains("no such file"));
}

#[test]
fn a_run_in_f16_goes_on_with_its_loss_scale() {
    let place = tempfile::tempdir().unwrap();
    let options = GpuOptions { disable: Disable::parse("software,dot").expect("known words"), ..GpuOptions::default() };
    let gpu = block_on(Gpu::open(&options)).expect("a device");
    let recipe = recipe("max_steps = 3\ndropout = 0.1\nf16 = true\ngradient_accumulation_steps = 2");
    let data = data(0);
    let mut whole = Notes::default();
    let ended = go(&gpu, &recipe, &data, &place.path().join("whole"), &mut whole).unwrap();
    let parts = place.path().join("parts");
    let mut notes = Notes { stop_after: Some(2), ..Notes::default() };
    assert_eq!(go(&gpu, &recipe, &data, &parts, &mut notes).unwrap().end, EndReason::Interrupted);
    notes.stop_after = None;
    let resumed = go(&gpu, &recipe, &data, &parts, &mut notes).unwrap();
    assert_eq!((notes.losses, resumed.weights == ended.weights, resumed.tokens), (whole.losses, true, ended.tokens));
    let scales = |of: &str| {
        crate::log::read_log(&place.path().join(of))
            .unwrap()
            .iter()
            .map(|e| (e.loss_scale, e.skipped_updates))
            .collect::<Vec<_>>()
    };
    assert_eq!(scales("parts"), scales("whole"));
    let (scale, skipped) = (scales("whole")[2].0.expect("a scale"), scales("whole")[2].1.expect("a count"));
    assert!(skipped > 0 && scale == HIGH / 2f64.powi(skipped as i32), "{scale}, {skipped} skipped");
    let saved = Checkpoints::new(&parts, 2).read(3).unwrap().state.loss_scale.expect("a saved scale");
    assert_eq!((saved.scale, saved.skipped_updates), (scale, skipped));
    // An invalid loss scale in an edited file.
    let state = parts.join("checkpoint-3/trainer_state.json");
    let text = std::fs::read_to_string(&state).unwrap().replace(&format!("\"scale\": {scale:?}"), "\"scale\": 3.5");
    std::fs::write(&state, text).unwrap();
    assert!(go(&gpu, &recipe, &data, &parts, &mut Notes::default()).unwrap_err().to_string().contains("power of two"));
    assert!(resumable(&parts, &Recipe { f16: false, ..recipe.clone() }).unwrap_err().to_string().contains("f16"));
}

#[test]
fn a_run_of_all_parameters_goes_on_too_and_leaves_a_checkpoint() {
    let (gpu, place) = (gpu(), tempfile::tempdir().unwrap());
    let text = "batch_size = 2\nmax_seq_length = 256\nlearning_rate = 1e-3\nseed = 3\nfull = true\nmax_steps = 5\nneftune_noise_alpha = 3\nweight_decay = 0.1";
    let recipe = Recipe::from_file("r.toml", text, serde_json::Map::new()).expect("a recipe");
    let data = data(3);
    let mut whole = Notes::default();
    let ended = go(&gpu, &recipe, &data, &place.path().join("whole"), &mut whole).unwrap();
    let (first, last) = (f64::from_bits(whole.losses[0].1), f64::from_bits(whole.losses[4].1));
    assert!(last < first, "the loss went from {first} to {last}");
    let parts = place.path().join("parts");
    let mut notes = Notes { stop_after: Some(2), ..Notes::default() };
    assert_eq!(go(&gpu, &recipe, &data, &parts, &mut notes).unwrap().end, EndReason::Interrupted);
    notes.stop_after = None;
    let resumed = go(&gpu, &recipe, &data, &parts, &mut notes).unwrap();
    assert_eq!(notes.losses, whole.losses);
    assert!(resumed.weights == ended.weights, "the weights are the same to the bit");
    // The result is an ordinary checkpoint with the base's tensors.
    let base = checkpoint("llama3_gqa");
    let result = write_result(
        &parts,
        &resumed.weights,
        &block_on(model_files(&base, SaveDtype::Bfloat16)).unwrap(),
        SaveDtype::Bfloat16,
    )
    .unwrap();
    let half = block_on(Checkpoint::open(Rc::new(DirectorySource::new(&result).unwrap()))).unwrap();
    let result = write_result(
        &parts,
        &resumed.weights,
        &block_on(model_files(&base, SaveDtype::Float32)).unwrap(),
        SaveDtype::Float32,
    )
    .unwrap();
    let written = block_on(Checkpoint::open(Rc::new(DirectorySource::new(&result).unwrap()))).unwrap();
    let shapes = |of: &Checkpoint| {
        of.tensors().iter().map(|t| (t.name.clone(), t.shape.clone())).collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(shapes(&written), shapes(&base));
    assert_eq!((shapes(&half), half.config()["torch_dtype"].as_str()), (shapes(&base), Some("bfloat16")));
    assert_eq!(half.require("model.norm.weight").unwrap().stored.name(), "BF16");
    assert!(result.join("tokenizer.json").is_file() && written.config()["torch_dtype"] == "float32");
    let before = block_on(base.read_f32("model.norm.weight")).unwrap();
    assert_ne!(block_on(written.read_f32("model.norm.weight")).unwrap(), before, "norms are trained");
    block_on(open(&written, Some(&gpu), &LoadOptions { context: 64 }, None, &mut |_, _| {})).unwrap();
}

#[test]
fn infinity_stops_the_run_and_names_what_and_where() {
    let (gpu, place) = (gpu(), tempfile::tempdir().unwrap());
    let recipe = recipe("max_steps = 9\nwarmup_steps = 4\nmax_grad_norm = 0\nsave_every = 1");
    // A learning rate beyond what recipes allow: the first step has rate 0, the second makes the weights huge.
    let recipe = Recipe { learning_rate: 1e30, ..recipe };
    let mut notes = Notes::default();
    let Err(error) = go(&gpu, &recipe, &data(0), place.path(), &mut notes) else {
        panic!("the run ended as if nothing had happened")
    };
    let RunError::NotFinite { step, tensor, checkpoint, .. } = &error else { panic!("{error}") };
    assert!(tensor.as_ref().is_some_and(|t| t.contains("lora_")), "{error}");
    assert_eq!(*step as usize, notes.losses.len());
    let saved = checkpoint.as_ref().expect("a checkpoint");
    let step: u64 = saved.rsplit('-').next().and_then(|s| s.parse().ok()).expect("a number");
    assert!(Checkpoints::new(place.path(), 2).read(step).is_ok());
    assert!(!crate::log::read_log(place.path()).unwrap().is_empty());
}

#[test]
fn the_best_weights_are_kept_and_patience_ends() {
    let (gpu, place) = (gpu(), tempfile::tempdir().unwrap());
    let mut recipe = recipe(
        "max_steps = 40\neval_every = 1\nval_split = 1\nkeep_best = true\nearly_stopping_patience = 2\nlr_scheduler = \"constant\"",
    );
    // The learning rate is far too high: the first evaluation stays the best for a while.
    recipe.learning_rate = 0.5;
    let mut notes = Notes::default();
    let ended = go(&gpu, &recipe, &data(2), place.path(), &mut notes).unwrap();
    assert_eq!(ended.end, EndReason::EarlyStopped);
    let (step, loss) = ended.best.expect("a best one");
    let lowest = notes.evaluations.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!((ended.weights_of_step, loss, ended.steps), (step, lowest, step + 2));
    assert_eq!(ended.weights, Checkpoints::new(place.path(), 1).read(step).unwrap().weights);
    let result = write_result(place.path(), &ended.weights, &[], SaveDtype::Float32).unwrap();
    let adapter = block_on(bayan_models::Adapter::open(Rc::new(DirectorySource::new(result).unwrap()))).unwrap();
    assert_eq!(TrainedWeights::Adapter(Box::new(adapter)), ended.weights);
    assert!(prepare_output(place.path(), &recipe, false).unwrap_err().to_string().contains("--resume"));
    prepare_output(place.path(), &recipe, true).unwrap();
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "only the recipe is left");
}

#[test]
fn estimated_memory_is_within_15_percent_of_the_peak() {
    let mut worst = 0.0f64;
    for (model, batch_size, more) in [
        ("llama3_gqa", 6, "max_steps = 3"),
        ("llama3_gqa", 6, "max_steps = 2\ngrad_checkpoint = false"),
        ("qwen2_bias", 3, "max_steps = 2\nquantize = \"q8_0\"\nalpha = 8"),
        ("qwen3_qknorm", 7, "max_steps = 2\nmask_prompt = false"),
        ("falcon_h1", 6, "max_steps = 2"),
        ("falcon_h1", 6, "max_steps = 2\ngrad_checkpoint = false"),
        ("lfm2", 6, "max_steps = 2"),
        ("qwen3_qknorm", 7, "max_steps = 2\nfull = true"),
        ("llama3_gqa", 6, "max_steps = 2\nfull = true\ngrad_checkpoint = false"),
        ("qwen3_qknorm", 1, "max_steps = 12\nfull = true # uneven"),
        ("llama3_gqa", 6, "max_steps = 2\nf16 = true"),
        ("llama3_gqa", 6, "max_steps = 2\nf16 = true\ngrad_checkpoint = false"),
        ("qwen3_qknorm", 4, "max_steps = 2\nmethod = \"dpo\""),
        ("llama3_gqa", 4, "max_steps = 3\nmethod = \"dpo\""),
        ("lfm2", 3, "max_steps = 2\nmethod = \"dpo\"\ngrad_checkpoint = false"),
    ] {
        let (gpu, place) = (gpu(), tempfile::tempdir().unwrap());
        let rank = if more.contains("full") { "" } else { "rank = 4\n" };
        let text = format!("{rank}max_seq_length = 256\nlearning_rate = 2e-3\nseed = 3\n{more}");
        let recipe =
            Recipe { batch_size, ..Recipe::from_file("r.toml", &text, serde_json::Map::new()).expect("a recipe") };
        let checkpoint = checkpoint(model);
        let policy =
            recipe.quantize.as_deref().and_then(bayan_weights::format_by_name).map(bayan_weights::Policy::for_format);
        let sequences = if more.contains("uneven") { uneven(12, 250) } else { dataset(12, 60) };
        let sequences = if recipe.method == Method::Dpo { sequences.paired() } else { sequences };
        let data = RunData { train: Units::new(sequences, None), ..data(0) };
        let base = BaseInfo::of(&checkpoint, &recipe, policy.as_ref()).unwrap();
        let run = Run { recipe: &recipe, data: &data };
        let (largest, trained) = data.largest_batch(&recipe, run.epochs());
        let inputs = base.memory_inputs(&recipe, &data, (&largest, trained));
        let estimated = crate::estimate(&recipe, &inputs, &crate::Calibration::default());
        let options = TrainerOptions {
            context: data.longest(),
            recompute: recipe.grad_checkpoint,
            f16: recipe.f16,
            ..TrainerOptions::default()
        };
        let load = LoadOptions { context: data.longest() };
        let mut trainer = if recipe.full {
            let (decoder, parameters) =
                block_on(bayan_models::open_to_train(&checkpoint, Some(&gpu), &load, &mut |_, _| {})).unwrap();
            Trainer::full(Some(&gpu), decoder, parameters, options).unwrap()
        } else {
            let mut decoder = block_on(open(&checkpoint, Some(&gpu), &load, policy, &mut |_, _| {})).unwrap();
            let adapter = new_adapter(&mut *decoder, base.adapter.clone(), &mut Rng::new(1, 1)).unwrap();
            Trainer::new(Some(&gpu), decoder, &adapter, options).unwrap()
        };
        let mut store = DirectoryStore::new(place.path(), 1, "test");
        block_on(run.start(&mut trainer, None, &mut store, &mut Notes::default())).unwrap();
        let measured = gpu.peak_allocated_bytes() as f64;
        let ratio = estimated.total() as f64 / measured;
        println!("{model} {more:?}: estimated / measured {ratio:.3}, measured {measured}\n{estimated}");
        worst = worst.max((ratio - 1.0).abs());
    }
    assert!(worst < 0.15, "an estimate is off by {:.0} %", 100.0 * worst);
}
