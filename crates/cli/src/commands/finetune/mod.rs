//! `bayan finetune`: trains a LoRA adapter (or all parameters) over a model, quantized or not.
//!
//! Flags and files are layers of one recipe; their meaning and the run itself are in `bayan-train`. This module parses
//! them and shows the progress.

mod benchmarks;
mod flags;
mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bayan_evaluate::training::Benchmarks;
use bayan_gpu::{Gpu, block_on};
use bayan_models::LoadOptions;
use bayan_train::checkpoint::Resumed;
use bayan_train::engine::{GradientCheck, Trainer, TrainerOptions, new_adapter};
use bayan_train::recipe::{Method, parse_toml, parse_yaml};
use bayan_train::run::{INITIAL_WEIGHTS, RECIPE_FILE, model_files, prepare_output, resumable, write_result};
use bayan_train::{
    BaseInfo, Calibration, DirectoryStore, EndReason, MemoryEstimate, Recipe, RenderOptions, Renderer, Rng, Run,
    RunData, RunSummary, estimate, scratch,
};
use bayan_weights::{Checkpoint, MemorySource, Policy};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::support::options::{CheckpointArgs, DeviceArgs, format_argument};
use crate::support::output::Progress;

use crate::support::{hub, interrupt, open, output, text};
use benchmarks::Watcher;
use flags::RecipeFlags;
use show::RunPrinter;

/// Exit code of an interrupted program, as shells use it.
const INTERRUPTED: u8 = 130;

/// Flags of `bayan finetune`.
#[derive(Debug, Args)]
#[command(
    after_help = "A recipe file (--config) has fields of the same names. A checkpoint holds the whole state of a run: after Ctrl-C, a kill or a power cut,\n\
    `bayan finetune --resume --output DIR` continues as if the run had not been interrupted."
)]
pub struct FinetuneArgs {
    /// Recipe: a .toml, .yaml or .yml file; flags override it
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Continue from the newest checkpoint in --output, with the recipe there
    #[arg(long)]
    resume: bool,
    /// Replace an earlier run in --output
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Show the data report, the memory estimate and the first N rendered examples with the trained tokens marked, then
    /// exit
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "3", require_equals = true)]
    dry_run: Option<usize>,
    /// Compare the gradients of the first batch with the slope of its loss on this device, then exit; 1 if they differ
    #[arg(long, conflicts_with_all = ["resume", "dry_run"])]
    check_gradients: bool,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    recipe: RecipeFlags,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Everything that is known before the weights are loaded.
struct Prepared {
    recipe: Recipe,
    checkpoint: Checkpoint,
    /// The initial weights, if they were generated for this run.
    initial: Option<MemorySource>,
    policy: Option<Policy>,
    renderer: Renderer,
    data: RunData,
    base: BaseInfo,
    memory: MemoryEstimate,
    /// The benchmarks, and the tokens of their longest text.
    benchmarks: Option<(Benchmarks, usize)>,
}

/// Trains, or shows what would be trained.
///
/// # Errors
/// The recipe, the data or the model is invalid or does not fit the device, or a loss is not finite.
pub fn run(args: &FinetuneArgs) -> Result<ExitCode> {
    let recipe = recipe(args)?;
    let show = RunPrinter::new(args.json);
    let prepared = prepare(recipe, &show)?;
    if let Some(count) = args.dry_run {
        show.examples(&prepared.data.train.first(count), prepared.renderer.tokenizer())?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.check_gradients {
        return check_gradients(args, &prepared, &show);
    }
    let output = PathBuf::from(prepared.recipe.output.as_deref().unwrap_or_default());
    let resumed = if args.resume { resumable(&output, &prepared.recipe)? } else { None };
    match &resumed {
        Some(resumed) => {
            output::note(&format!("resuming after step {} from {}", resumed.state.step, resumed.path.display()))
        }
        None if args.resume => {
            output::note(&format!("{}: no checkpoint was found; training starts from the beginning", output.display()));
            prepare_output(&output, &prepared.recipe, true)?;
        }
        None => prepare_output(&output, &prepared.recipe, args.overwrite)?,
    }
    if let (Some(initial), None) = (&prepared.initial, &resumed) {
        scratch::save_initial(initial, &output)?;
    }
    train(args, &prepared, &output, resumed, show)
}

/// Merges the recipe of the run's directory (when resuming), a file, and flags; later ones override earlier ones.
fn recipe(args: &FinetuneArgs) -> Result<Recipe> {
    let mut layers: Vec<Map<String, Value>> = vec![];
    if args.resume
        && let Some(output) = args.recipe.0.get("output").and_then(Value::as_str)
    {
        let file = Path::new(output).join(RECIPE_FILE);
        if file.is_file() {
            layers.push(read_recipe(&file)?);
        }
    }
    if let Some(file) = &args.config {
        layers.push(read_recipe(file)?);
    }
    layers.push(args.recipe.0.clone());
    let recipe = Recipe::resolve(layers)?;
    for (name, value) in [("data", &recipe.data), ("output", &recipe.output)] {
        if value.is_none() && !(name == "output" && (args.dry_run.is_some() || args.check_gradients)) {
            bail!("`{name}` is missing: expected --{name} PATH, or `{name}` in the recipe file");
        }
    }
    if let Some(format) = &recipe.quantize {
        format_argument(format).map_err(anyhow::Error::msg).context("--quantize")?;
    }
    Ok(recipe)
}

fn read_recipe(file: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the recipe {}", file.display()))?;
    let parsed = match file.extension().and_then(|ending| ending.to_str()) {
        Some("toml") => parse_toml(&text),
        Some("yaml" | "yml") => parse_yaml(&text),
        _ => bail!("{}: expected a recipe whose name ends in .toml, .yaml or .yml; rename it", file.display()),
    };
    parsed.with_context(|| file.display().to_string())
}

/// The recipe with the paths of data that it names as on a hub.
///
/// # Errors
/// The data set was not pulled, or is no training data.
fn with_paths(recipe: &Recipe) -> Result<Recipe> {
    let path = |text: &Option<String>| -> Result<Option<String>> {
        text.as_deref().map(|text| Ok(hub::training::path(text)?.display().to_string())).transpose()
    };
    Ok(Recipe { data: path(&recipe.data)?, ..recipe.clone() })
}

/// Reads the data and the model's headers, and prints their reports.
fn prepare(mut recipe: Recipe, show: &RunPrinter) -> Result<Prepared> {
    let model = recipe.model.as_deref().map(Path::new);
    let (checkpoint, initial) = if recipe.from_scratch {
        let source = block_on(scratch::source(open::source(model)?.as_ref(), recipe.seed))?;
        (block_on(Checkpoint::open(Rc::new(source.clone())))?, Some(source))
    } else {
        (open::checkpoint(model)?, None)
    };
    let sizes = bayan_models::sizes(&checkpoint)?;
    if recipe.max_seq_length > sizes.max_position_embeddings {
        if recipe.max_seq_length != Recipe::default().max_seq_length {
            let limit = sizes.max_position_embeddings;
            tracing::warn!(
                "max_seq_length {} exceeds the {limit} positions of this model; longer sequences are truncated to {limit} tokens",
                recipe.max_seq_length
            );
        }
        recipe.max_seq_length = sizes.max_position_embeddings;
    }
    let text = text::pipeline(&CheckpointArgs {
        model: recipe.model.clone().map(PathBuf::from),
        chat_template: recipe.chat_template.clone(),
    })?;
    let renderer = Renderer::new(text.tokenizer, text.template, RenderOptions::of(&recipe));
    let mut progress = Progress::new("reading data: rows", false);
    let data =
        RunData::load(&with_paths(&recipe)?, &renderer, &mut |report| progress.set(report.read, report.read.max(1)))?;
    drop(progress);
    let benchmarks = match benchmarks::open(&recipe)? {
        Some(benchmarks) => {
            let longest = benchmarks.longest(renderer.tokenizer(), recipe.max_seq_length).context("--eval")?;
            Some((benchmarks, longest))
        }
        None => None,
    };
    let policy = match &recipe.quantize {
        Some(name) => Some(Policy::for_format(format_argument(name).map_err(anyhow::Error::msg)?)),
        None => None,
    };
    let base = BaseInfo::of(&checkpoint, &recipe, policy.as_ref())?;
    let length = recipe.run_length(data.train.len());
    let epochs = length.total_steps.div_ceil(length.steps_per_epoch.max(1));
    let (largest, trained) = data.largest_batch(&recipe, epochs);
    let memory = estimate(&recipe, &base.memory_inputs(&recipe, &data, (&largest, trained)), &Calibration::default());
    show.data(&data)?;
    show.run(&recipe, &base, &length, &data)?;
    show.memory(&memory)?;
    Ok(Prepared { recipe, checkpoint, initial, policy, renderer, data, base, memory, benchmarks })
}

/// Loads the base onto the device, and makes the trainer of it or of an adapter over it.
fn trainer(prepared: &Prepared, gpu: &Gpu, context: usize) -> Result<Trainer> {
    let recipe = &prepared.recipe;
    let mut progress = Progress::new("loading", true);
    let mut on_progress = |done, total| progress.set(done, total);
    let load = LoadOptions { context };
    let neftune = recipe.neftune_noise_alpha.filter(|alpha| *alpha > 0.0);
    let options = TrainerOptions {
        context,
        recompute: recipe.grad_checkpoint,
        seed: recipe.seed,
        neftune,
        f16: recipe.f16,
        ..TrainerOptions::default()
    };
    if recipe.full {
        let (decoder, parameters) =
            block_on(bayan_models::open_to_train(&prepared.checkpoint, Some(gpu), &load, &mut on_progress))?;
        return Ok(Trainer::full(Some(gpu), decoder, parameters, options)?);
    }
    let mut decoder = block_on(bayan_models::open(
        &prepared.checkpoint,
        Some(gpu),
        &load,
        prepared.policy.clone(),
        &mut on_progress,
    ))?;
    let adapter =
        new_adapter(&mut *decoder, prepared.base.adapter.clone(), &mut Rng::new(recipe.seed, INITIAL_WEIGHTS))?;
    Ok(Trainer::new(Some(gpu), decoder, &adapter, options)?)
}

/// Checks the gradients of the run's first batch.
fn check_gradients(args: &FinetuneArgs, prepared: &Prepared, show: &RunPrinter) -> Result<ExitCode> {
    let recipe = &prepared.recipe;
    if recipe.method != Method::Sft {
        bail!("--check-gradients: expected method sft, whose loss has the slope that is compared; got dpo");
    }
    let gpu = crate::support::device::gpu_to_train(&args.device, recipe.f16)?;
    show.device(&gpu)?;
    let mut trainer = trainer(prepared, &gpu, prepared.data.longest().max(2))?;
    let batch = prepared.data.first_batch(recipe).context("the data has no batch")?;
    let checks = block_on(trainer.check_gradients(&batch))?;
    show.gradients(&checks)?;
    if checks.iter().all(GradientCheck::agrees) {
        return Ok(ExitCode::SUCCESS);
    }
    let driver = &gpu.capabilities().driver;
    output::note(&format!(
        "the gradients of this device are wrong for this model and batch (driver {driver}). Please report these \
         numbers; `--disable software` or `--disable subgroups` chooses other kernels"
    ));
    Ok(ExitCode::FAILURE)
}

fn train(
    args: &FinetuneArgs,
    prepared: &Prepared,
    output: &Path,
    resumed: Option<Resumed>,
    mut show: RunPrinter,
) -> Result<ExitCode> {
    let recipe = &prepared.recipe;
    let gpu = crate::support::device::gpu_to_train(&args.device, recipe.f16)?;
    show.device(&gpu)?;
    let longest = prepared.benchmarks.as_ref().map_or(0, |(_, longest)| *longest);
    let context = prepared.data.longest().max(longest).max(2);
    let mut trainer = trainer(prepared, &gpu, context)?;
    let name = recipe.model.clone().unwrap_or_else(|| "embedded".into());
    let run = Run { recipe, data: &prepared.data };
    let title = format!("bayan finetune · {name} · {}", output.display());
    let mut store = DirectoryStore::new(output, recipe.keep_last, title);
    show.stop_on(interrupt::flag());
    let largest = prepared.data.largest_batch(recipe, run.epochs()).0.ids.len();
    let mut watcher = Watcher {
        printer: show,
        benchmarks: prepared.benchmarks.as_ref().map(|(benchmarks, _)| benchmarks),
        tokenizer: prepared.renderer.tokenizer(),
        context: recipe.max_seq_length,
        batch: (recipe.batch_size, largest),
    };
    let ended = block_on(run.start(&mut trainer, resumed, &mut store, &mut watcher))?;
    let show = watcher.printer;
    if ended.end == EndReason::Interrupted {
        let how = format!("bayan finetune --resume --output {}", output.display());
        show.line(
            &format!("training stopped after step {}; a checkpoint was saved. Resume with: {how}", ended.steps),
            &json!({"event": "stopped", "steps": ended.steps, "resume": how}),
        )?;
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let files = if recipe.full { block_on(model_files(&prepared.checkpoint, recipe.save_dtype))? } else { vec![] };
    let result = write_result(output, &ended.weights, &files, recipe.save_dtype)?;
    finish(prepared, &ended, &result, &name, &gpu, &show)?;
    Ok(ExitCode::SUCCESS)
}

fn finish(
    prepared: &Prepared,
    ended: &RunSummary,
    result: &Path,
    name: &str,
    gpu: &Gpu,
    show: &RunPrinter,
) -> Result<()> {
    let output = result.display().to_string();
    let peak = gpu.peak_allocated_bytes();
    let why = if ended.end == EndReason::EarlyStopped {
        " (stopped early: the evaluation loss stopped improving)"
    } else {
        ""
    };
    let mut text = format!(
        "trained {} steps{why}, {} tokens, in {}; peak device memory {} (estimated {})\n",
        ended.steps,
        ended.tokens,
        show::time(ended.elapsed),
        output::size(peak),
        output::size(prepared.memory.total())
    );
    if let Some((step, loss)) = ended.best {
        text.push_str(&format!("best evaluation loss {loss:.4} after step {step}\n"));
    }
    let plots = prepared.recipe.output.as_deref().unwrap_or_default();
    text.push_str(&format!(
        "the weights after step {} are in {output}; the loss is plotted in loss.png and loss.html in {plots}\n",
        ended.weights_of_step
    ));
    text.push_str(&match prepared.recipe.full {
        true => format!("to try it: bayan chat --model {output}"),
        false => format!("to try it: bayan chat --model {name} --adapter {output}"),
    });
    let (step, loss) = ended.best.unzip();
    show.line(
        &text,
        &json!({
            "event": "done", "steps": ended.steps, "early_stopped": ended.end == EndReason::EarlyStopped, "tokens": ended.tokens, "seconds": ended.elapsed.as_secs_f64(),
            "loss": ended.loss, "best_step": step, "best_eval_loss": loss, "weights_of_step": ended.weights_of_step, "output": output,
            "peak_memory_bytes": peak, "estimated_memory_bytes": prepared.memory.total(),
        }),
    )
}
