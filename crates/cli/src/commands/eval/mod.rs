//! `bayan eval`: Arabic benchmarks by the rules of their harnesses.
//!
//! The rules are in `bayan-evaluate`; this file opens the model, shows progress and prints tables.

mod chat;
mod http;
mod judged;
mod remote;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bayan_evaluate::compare;
use bayan_evaluate::data::DataFolder;
use bayan_evaluate::judged::sets::SETS;
use bayan_evaluate::prompt::Around;
use bayan_evaluate::report;
use bayan_evaluate::results::{self, Finished};
use bayan_evaluate::run::{self, Backend, Local, Output, Prepared, Scoring, Settings};
use bayan_evaluate::suites::{self, NOT_PUBLIC, Selection};
use bayan_evaluate::task::{Group, Metric};
use bayan_generate::engine::DEFAULT_CONTEXT;
use bayan_generate::{EngineOptions, Model, StepSizes};
use bayan_gpu::block_on;
use clap::{Args, Subcommand};
use hf_hub::Cache;
use serde_json::{Value, json};

use crate::support::hub::{self, HubName};
use crate::support::options::ModelArgs;
use crate::support::output::{self, Progress};
use crate::support::{open, text};

/// Flags of `bayan eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Score a model on benchmarks
    Run(Box<RunArgs>),
    /// List the benchmarks, their sources and their rules
    List(ListArgs),
    /// Say whether two runs differ by more than chance
    Compare(CompareArgs),
    /// Write a run's answers in the layout of a program that judges them
    Export(judged::ExportArgs),
    /// Have a model behind a server judge a run's answers
    Judge(Box<judged::JudgeArgs>),
    /// Read the verdicts of another program on a run's answers
    Import(judged::ImportArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Folder with the data sets as they are published, or the name of one that was pulled [default: all that were
    /// pulled]
    #[arg(long, value_name = "DIR|NAME")]
    data: Option<PathBuf>,
    /// Tasks or groups, separated by commas (see `bayan eval list`)
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    tasks: Vec<String>,
    /// Number of examples before each question [default: that of the benchmark]
    #[arg(long, value_name = "N")]
    shots: Option<usize>,
    /// Only the first N items of each task
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Seed of bootstrap samples
    #[arg(long, value_name = "N", default_value_t = 1234)]
    seed: u64,
    /// Folder for results.json, report.html, and one file of samples for each task
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on with the run that was begun in --out
    #[arg(long)]
    resume: bool,
    /// Columns with other names than the published ones: published=yours, separated by commas
    #[arg(long, value_name = "MAP", value_delimiter = ',', value_parser = column)]
    columns: Vec<(String, String)>,
    /// Put prompts into the model's chat template, as lm-evaluation-harness does with its flag of this name, and
    /// lighteval for models with a template (tasks of these two)
    #[arg(long, alias = "apply_chat_template")]
    apply_chat_template: bool,
    /// Examples are turns of their own; with `false` they stand in the one turn of the user [default: true]
    #[arg(long, alias = "fewshot_as_multiturn", value_name = "true|false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", requires = "apply_chat_template")]
    fewshot_as_multiturn: Option<bool>,
    /// The system message with --apply-chat-template, else a text before each prompt
    #[arg(long, alias = "system_instruction", value_name = "TEXT")]
    system_instruction: Option<String>,
    /// Begin prompts of AceGPT's benchmarks with the tokenizer's special tokens, which its harness leaves out for its
    /// own models
    #[arg(long)]
    special_tokens: bool,
    /// Score the model behind a server with OpenAI's interface, such as `bayan serve`; --model names its tokenizer
    #[arg(long, value_name = "URL", conflicts_with_all = ["quantize", "adapter", "gpu_layers", "devices"])]
    server: Option<String>,
    /// Name of the model in requests to --server
    #[arg(long, value_name = "NAME", requires = "server")]
    server_model: Option<String>,
    /// Key for --server
    #[arg(long, env = "BAYAN_EVAL_KEY", hide_env_values = true, value_name = "KEY", requires = "server")]
    server_key: Option<String>,
    /// Number of items that are computed together
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=256))]
    parallel: u64,
    /// Compute every choice as a prompt of its own, as `bayan serve` does: slower, and with the numbers that --server
    /// gives to the last bit also on a GPU with models that have windows or recurrent states
    #[arg(long, conflicts_with = "server")]
    as_served: bool,
    /// Compute every choice by itself, to compare the speed
    #[arg(long, hide = true, conflicts_with_all = ["server", "as_served"])]
    one_by_one: bool,
    /// Print results.json instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Also each task, with its data set
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// The folder of a run
    #[arg(value_name = "A")]
    first: PathBuf,
    /// The folder of another
    #[arg(value_name = "B")]
    second: PathBuf,
    /// Seed of bootstrap samples
    #[arg(long, value_name = "N", default_value_t = 1234)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn column(text: &str) -> Result<(String, String), String> {
    match text.split_once('=').map(|(ours, theirs)| (ours.trim(), theirs.trim())) {
        Some((ours, theirs)) if !ours.is_empty() && !theirs.is_empty() => Ok((ours.into(), theirs.into())),
        _ => Err(format!("`{text}`: expected published=yours, as in question=سؤال")),
    }
}

/// Runs, lists or compares.
///
/// # Errors
/// Data, model or settings are invalid.
pub fn run(args: &EvalArgs) -> Result<ExitCode> {
    match &args.command {
        Command::Run(args) => evaluate(args)?,
        Command::List(args) => list(args)?,
        Command::Compare(args) => compare_runs(args)?,
        Command::Export(args) => judged::export(args)?,
        Command::Judge(args) => judged::judge(args)?,
        Command::Import(args) => judged::import(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn evaluate(args: &RunArgs) -> Result<()> {
    let judged = judged::sets_of(&args.tasks)?;
    if !judged.is_empty() {
        return judged::answer(args, &judged, &mut data_folder(args.data.as_deref())?);
    }
    let Selection { tasks, groups } = suites::select(&args.tasks)?;
    let template = match args.apply_chat_template {
        false => None,
        true => Some(Rc::new(text::pipeline(&args.model.checkpoint)?.template()?.clone())),
    };
    let settings = Settings {
        around: Around {
            template,
            one_turn: args.fewshot_as_multiturn == Some(false),
            system: args.system_instruction.clone(),
        },
        shots: args.shots,
        limit: args.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        columns: args.columns.clone(),
        special_tokens: args.special_tokens,
    };
    // All rows are read and checked before the model is loaded.
    let mut folder = data_folder(args.data.as_deref())?;
    let prepared = tasks
        .iter()
        .map(|task| run::prepare(task, &mut folder, &settings).with_context(|| task.full_name()))
        .collect::<Result<Vec<Prepared>>>()?;
    run::check_columns(&prepared, &settings.columns)?;
    if let Some(url) = &args.server {
        let text = text::pipeline(&args.model.checkpoint)?;
        let context = args.model.context.map_or(DEFAULT_CONTEXT, |context| context as usize);
        let name = args.server_model.clone().unwrap_or_else(|| model_name(args));
        let mut about = json!({"server": url, "model": name, "tokenizer": model_name(args), "context": context,
            "bayan": env!("CARGO_PKG_VERSION")});
        settings.around.describe(&mut about);
        let mut remote = remote::Remote::new(url, name, args.server_key.clone(), text, context);
        return score(args, &settings, &prepared, &groups, &about, &mut remote);
    }
    // Steps of listed sizes need few plans, and one more slot that fills them up.
    let engine =
        EngineOptions { sequences: args.parallel as usize + 1, sizes: StepSizes::Listed, ..EngineOptions::default() };
    let mut model = open::model_with(&args.model, None, engine)?.model;
    let mut about = about(args, &model);
    settings.around.describe(&mut about);
    let wait = |work: run::Pending<'_>| block_on(work);
    let scoring = match (args.as_served, args.one_by_one) {
        (true, _) => Scoring::AsServed,
        (false, true) => Scoring::OneByOne,
        (false, false) => Scoring::Shared,
    };
    let mut backend = Local { model: &mut model, scoring, wait: &wait };
    score(args, &settings, &prepared, &groups, &about, &mut backend)
}

/// A folder with data, one data set that was pulled from a hub, or all that were.
///
/// # Errors
/// There is no such folder, and no such data set in the cache.
pub fn data_folder(data: Option<&Path>) -> Result<DataFolder> {
    let Some(path) = data else {
        let cache = Cache::from_env();
        let open = DataFolder::open(cache.path());
        return open.context("expected --data DIR, or data sets that were downloaded with `bayan pull --dataset`");
    };
    match path.to_str().filter(|_| !path.exists()).and_then(HubName::parse_dataset) {
        Some(name) => Ok(DataFolder::of_dataset(&hub::dataset(&name)?, &name.repo)?),
        None => Ok(DataFolder::open(path)?),
    }
}

/// The model and the settings that its results depend on.
fn about(args: &RunArgs, model: &Model) -> Value {
    json!({
        "model": model_name(args),
        "quantize": args.model.quantize.map(|format| format.name()),
        "cache": format!("{:?}", args.model.cache).to_lowercase(),
        "adapters": args.model.adapter.iter().map(|adapter| adapter.path.display().to_string()).collect::<Vec<_>>(),
        "context": model.engine.context(),
        "device": model.engine.capabilities().name,
        "bayan": env!("CARGO_PKG_VERSION"),
        "parallel": args.parallel,
        "one_by_one": args.one_by_one,
        "as_served": args.as_served,
    })
}

fn model_name(args: &RunArgs) -> String {
    args.model.checkpoint.model.as_ref().map_or(open::EMBEDDED.to_owned(), |path| path.display().to_string())
}

/// Scores all items, and writes and prints the results. `about` names the model and its settings.
fn score(
    args: &RunArgs,
    settings: &Settings,
    prepared: &[Prepared],
    groups: &[Group],
    about: &Value,
    backend: &mut dyn Backend,
) -> Result<()> {
    let mut plan = run::plan(prepared, settings, args.seed);
    plan["model"] = about.clone();
    let out = Output::open(&args.out, &plan, args.resume)?;
    let total: usize = prepared.iter().map(|one| one.items.len()).sum();
    let (mut progress, started) = (Progress::new("items", false), Instant::now());
    let (mut done, mut skipped) = (0, 0);
    let mut finished = Vec::new();
    for one in prepared {
        progress.message(&one.task.name);
        let mut first = true;
        let mut on_items = |items: usize| {
            done += items;
            if std::mem::take(&mut first) && items > 0 {
                skipped += items;
                progress.skip(done as u64, total as u64);
            } else {
                progress.set(done as u64, total as u64);
            }
        };
        let samples = out.run(backend, one, &mut on_items).with_context(|| one.task.full_name())?;
        finished.push(Finished { prepared: one, samples });
    }
    drop(progress);
    let results = results::to_json(&finished, groups, about, args.seed);
    let path = out.folder().join("results.json");
    std::fs::write(&path, format!("{results:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    let page = out.folder().join("report.html");
    std::fs::write(&page, report::to_html(&finished, groups, about, args.seed))
        .with_context(|| format!("cannot write {}", page.display()))?;
    if args.json {
        return output::json(&results);
    }
    output::line(&output::table(&results::HEADINGS, &results::table(&finished, groups, args.seed)))?;
    let truncated = finished.iter().flat_map(|one| &one.samples).filter(|sample| sample.truncated).count();
    if truncated > 0 {
        let context = backend.context();
        output::note(&format!(
            "{truncated} prompts lost their beginning: they are longer than the context of {context}"
        ));
    }
    let (seconds, items) = (started.elapsed().as_secs_f64(), done - skipped);
    output::note(&format!(
        "{items} items in {seconds:.1} s ({:.2} items/s); {}",
        items as f64 / seconds,
        path.display()
    ));
    Ok(())
}

fn list(args: &ListArgs) -> Result<()> {
    let mut rows = Vec::new();
    for suite in suites::suites() {
        for (at, group) in suite.groups.iter().enumerate() {
            let about = if at == 0 { suite.about } else { "" };
            let version = group.protocol.version();
            rows.push(vec![group.full_name(), group.tasks.len().to_string(), version.into(), about.into()]);
        }
        for task in suite.tasks.iter().filter(|_| args.all || suite.groups.is_empty()) {
            let config = task.source.config.as_deref().map(|config| format!(", {config}")).unwrap_or_default();
            let source = format!("{}{config}", task.source.dataset);
            rows.push(vec![task.full_name(), "1".into(), task.protocol.version().into(), source]);
        }
    }
    for set in SETS {
        rows.push(vec![set.name.into(), "1".into(), set.rules.version().into(), set.about.into()]);
    }
    output::line(&output::table(&["name", "tasks", "rules", "what"], &rows))?;
    for (name, why) in NOT_PUBLIC {
        output::line(&format!("{name}: {why}"))?;
    }
    Ok(())
}

fn compare_runs(args: &CompareArgs) -> Result<()> {
    if args.first == args.second {
        bail!("expected two folders, got {} twice; name the folders of two runs", args.first.display());
    }
    let found = compare::folders(&args.first, &args.second, args.seed)?;
    if args.json {
        let all = found.iter().map(|one| {
            json!({"task": one.task, "metric": one.metric, "n": one.items, "a": one.scores[0], "b": one.scores[1],
                "difference": one.scores[1] - one.scores[0], "interval95": one.interval, "only_a": one.only[0],
                "only_b": one.only[1], "mcnemar_p": one.p})
        });
        return output::json(&all.collect());
    }
    let row = |one: &compare::Comparison| {
        let of = |value: f64| Metric::by_name(&one.metric).map_or(100.0 * value, |metric| metric.percent(value));
        let percent = |value: f64| format!("{:.2}", of(value));
        vec![
            one.task.clone(),
            one.metric.clone(),
            one.items.to_string(),
            percent(one.scores[0]),
            percent(one.scores[1]),
            format!("{:+.2}", of(one.scores[1] - one.scores[0])),
            format!("{:+.2} to {:+.2}", of(one.interval[0]), of(one.interval[1])),
            one.only[0].to_string(),
            one.only[1].to_string(),
            format!("{:.4}", one.p),
        ]
    };
    let headings =
        ["task", "metric", "n", "A %", "B %", "B - A", "95 % of bootstraps", "only A", "only B", "McNemar p"];
    output::line(&output::table(&headings, &found.iter().map(row).collect::<Vec<_>>()))
}
