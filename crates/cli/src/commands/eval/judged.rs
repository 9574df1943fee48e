//! Sets that another model judges: answers, exports, verdicts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bayan_evaluate::data::DataFolder;
use bayan_evaluate::judged::answers::{self, Answered, Answerer};
use bayan_evaluate::judged::export::{self, Layout};
use bayan_evaluate::judged::judge::{self, Judgment};
use bayan_evaluate::judged::prompts::{Prompts, Protocol};
use bayan_evaluate::judged::scores::{self, Scale};
use bayan_evaluate::judged::sets::{self, JudgedSet, Questions};
use bayan_evaluate::judged::{answers_path, file_part, import, requests};
use bayan_evaluate::run::{Local, Output, Pending, Scoring};
use bayan_generate::{EngineOptions, StepSizes};
use bayan_gpu::block_on;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::chat::{Chat, ChatModel};
use super::{RunArgs, model_name};
use crate::support::output::{self, Progress};
use crate::support::{open, text};

/// Layouts of other programs.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LayoutArg {
    /// FastChat's llm_judge: question.jsonl and model_answer; model_judgment
    Fastchat,
    /// AlpacaEval: model_outputs.json; annotations.json
    AlpacaEval,
    /// LLMZoo: questions.jsonl and answer files; review.jsonl
    Llmzoo,
    /// Prompts and responses for classifiers of safety; is_safe or flagged
    Beavertails,
}

impl LayoutArg {
    fn layout(self) -> Layout {
        match self {
            LayoutArg::Fastchat => Layout::FastChat,
            LayoutArg::AlpacaEval => Layout::AlpacaEval,
            LayoutArg::Llmzoo => Layout::LlmZoo,
            LayoutArg::Beavertails => Layout::BeaverTails,
        }
    }
}

/// Flags of `bayan eval export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The folder of a run with answers
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Whose layout
    #[arg(long = "for", value_name = "PROGRAM")]
    layout: LayoutArg,
    /// Folder for the files
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Which set, if the run has several
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
}

/// Flags of `bayan eval judge`.
#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// The folder of a run with answers
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Address of a server with OpenAI's interface
    #[arg(long, value_name = "URL")]
    judge_server: String,
    /// Name of the judge in requests
    #[arg(long, value_name = "NAME")]
    judge_model: String,
    /// Key for --judge-server
    #[arg(long, env = "BAYAN_JUDGE_KEY", hide_env_values = true, value_name = "KEY")]
    judge_key: Option<String>,
    /// How answers are judged: single, pair, llmzoo, alpaca-eval, alpaca-eval-2, alrage or safety [default: that of the
    /// set]
    #[arg(long, value_name = "NAME", value_parser = protocol)]
    protocol: Option<Protocol>,
    /// Answers to compare with: the folder of another run, or a file of FastChat, AlpacaEval or LLMZoo
    #[arg(long, value_name = "RUN|FILE")]
    baseline: Option<PathBuf>,
    /// Reference answers of a stronger model, in FastChat's layout (reference_answer/gpt-4.jsonl)
    #[arg(long, value_name = "FILE")]
    references: Option<PathBuf>,
    /// Prompts in FastChat's layout that replace published ones of the same name
    #[arg(long, value_name = "FILE")]
    judge_prompts: Option<PathBuf>,
    /// Which set, if the run has several
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
    /// File of verdicts; one that exists is gone on with [default: RUN/judgments_….jsonl]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Ask again where the verdict could not be read
    #[arg(long)]
    retry_failed: bool,
    /// Number of requests at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    parallel: u64,
    /// Seed of bootstrap samples
    #[arg(long, value_name = "N", default_value_t = 1234)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `bayan eval import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The folder of a run with answers
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Whose layout
    #[arg(long = "for", value_name = "PROGRAM")]
    layout: LayoutArg,
    /// The file of verdicts
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Which set, if the run has several
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
    /// Seed of bootstrap samples
    #[arg(long, value_name = "N", default_value_t = 1234)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn protocol(text: &str) -> Result<Protocol, String> {
    let names = || Protocol::ALL.map(Protocol::name).join(", ");
    let found = Protocol::ALL.into_iter().find(|protocol| protocol.name() == text);
    found.ok_or_else(|| format!("`{text}`: expected one of {}", names()))
}

/// Splits names of tasks into those of sets and the others; a run has either.
pub fn sets_of(names: &[String]) -> Result<Vec<&'static JudgedSet>> {
    let found: Vec<&JudgedSet> = names.iter().filter_map(|name| sets::find(name)).collect();
    if !found.is_empty() && found.len() < names.len() {
        let other = names.iter().find(|name| sets::find(name).is_none()).map_or("", String::as_str);
        bail!(
            "--tasks: expected either sets that are judged or tasks that are scored, got {} and {other}; run them \
               apart",
            found[0].name
        );
    }
    Ok(found)
}

/// Answers sets.
pub fn answer(args: &RunArgs, sets: &[&'static JudgedSet], data: &mut DataFolder) -> Result<()> {
    if args.shots.is_some_and(|shots| shots > 0) {
        bail!("--shots: expected none, because sets that are judged have no examples; leave it out");
    }
    if args.apply_chat_template || args.system_instruction.is_some() {
        bail!(
            "--apply-chat-template and --system-instruction: expected neither, because the rules of sets that are \
             judged say how they are asked; leave them out"
        );
    }
    let limit = args.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let questions = sets
        .iter()
        .map(|set| set.read(data, &args.columns, limit).with_context(|| set.name))
        .collect::<Result<Vec<Questions>>>()?;
    let plan = |about: &Value| {
        let set = |one: &Questions| json!({"set": one.set.name, "rules": one.set.rules.version(), "items": one.asked.len(), "data": one.hashes});
        json!({"sets": questions.iter().map(set).collect::<Vec<_>>(), "limit": args.limit, "columns": args.columns,
            "seed": args.seed, "model": about})
    };
    if let Some(url) = &args.server {
        let text = text::pipeline(&args.model.checkpoint)?;
        let name = args.server_model.clone().unwrap_or_else(|| model_name(args));
        let about = json!({"server": url, "model": name, "tokenizer": model_name(args),
            "bayan": env!("CARGO_PKG_VERSION")});
        let chat = Chat::new(url, args.server_key.clone(), args.parallel as usize);
        let mut model = ChatModel { chat, name: name.clone(), text };
        return answer_with(args, &questions, &plan(&about), &name, &mut model);
    }
    let engine =
        EngineOptions { sequences: args.parallel as usize + 1, sizes: StepSizes::Listed, ..EngineOptions::default() };
    let mut model = open::model_with(&args.model, None, engine)?.model;
    let about = super::about(args, &model);
    let wait = |work: Pending<'_>| block_on(work);
    let mut local = Local { model: &mut model, scoring: Scoring::Shared, wait: &wait };
    let name = short_name(args);
    answer_with(args, &questions, &plan(&about), &name, &mut local)
}

/// The model's name in files of answers: that of its folder, and of its adapters.
fn short_name(args: &RunArgs) -> String {
    let last =
        |path: &Path| path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into());
    let model = args.model.checkpoint.model.as_deref().map_or(open::EMBEDDED.to_owned(), last);
    let parts = args.model.adapter.iter().map(|adapter| last(&adapter.path));
    let format = args.model.quantize.map(|format| format.name().to_owned());
    std::iter::once(model).chain(parts).chain(format).collect::<Vec<_>>().join("+")
}

fn answer_with(
    args: &RunArgs,
    questions: &[Questions],
    plan: &Value,
    name: &str,
    answerer: &mut dyn Answerer,
) -> Result<()> {
    let out = Output::open(&args.out, plan, args.resume)?;
    let total: usize = questions.iter().map(|one| one.asked.len()).sum();
    let (mut progress, mut done) = (Progress::new("questions", false), 0);
    let (mut rows, mut summary) = (Vec::new(), Vec::new());
    for one in questions {
        progress.message(one.set.name);
        let path = answers_path(out.folder(), one.set.name);
        let mut on_questions = |count: usize| {
            done += count;
            progress.set(done as u64, total as u64);
        };
        let found = answers::run(&path, one, name, args.seed, out.resumed(), answerer, &mut on_questions)
            .with_context(|| one.set.name)?;
        let cut = found.iter().filter(|own| own.finish.iter().any(|finish| finish != "stop")).count();
        let characters: usize = found.iter().flat_map(|own| &own.answers).map(|answer| answer.chars().count()).sum();
        let turns: usize = found.iter().map(|own| own.answers.len()).sum();
        let mean = characters as f64 / turns.max(1) as f64;
        rows.push(vec![
            one.set.name.to_owned(),
            one.set.rules.version().into(),
            found.len().to_string(),
            turns.to_string(),
            cut.to_string(),
            format!("{mean:.0}"),
        ]);
        summary.push(json!({"set": one.set.name, "rules": one.set.rules.version(), "questions": found.len(),
            "answers": turns, "cut": cut, "mean_characters": mean, "file": path}));
    }
    drop(progress);
    if args.json {
        return output::json(&json!(summary));
    }
    output::line(&output::table(&["set", "rules", "questions", "answers", "cut", "characters"], &rows))?;
    output::note(&format!(
        "answers are in {0}; go on with `bayan eval judge {0}` or `bayan eval export {0}`",
        out.folder().display()
    ));
    Ok(())
}

/// The set of a run's folder, and its answers.
fn answers_in(run: &Path, name: Option<&str>) -> Result<(&'static JudgedSet, Vec<Answered>)> {
    let here: Vec<&JudgedSet> = sets::SETS.iter().filter(|set| answers_path(run, set.name).is_file()).collect();
    let list = || here.iter().map(|set| set.name).collect::<Vec<_>>().join(", ");
    let set = match (name, &here[..]) {
        (_, []) => bail!(
            "{}: expected a folder with answers, got none; `bayan eval run --tasks mt-bench --out DIR` makes one",
            run.display()
        ),
        (None, [one]) => one,
        (None, _) => bail!("{}: expected one set, got {}; choose one with --set", run.display(), list()),
        (Some(name), _) => match sets::find(name).filter(|set| here.iter().any(|here| here.name == set.name)) {
            Some(set) => set,
            None => bail!("--set: expected one of {}, got {name}", list()),
        },
    };
    Ok((set, answers::read(&answers_path(run, set.name))?))
}

/// Writes the files of other programs.
pub fn export(args: &ExportArgs) -> Result<()> {
    let (_, answers) = answers_in(&args.run, args.set.as_deref())?;
    for file in export::write_answers(args.layout.layout(), &answers, &args.to)? {
        output::line(&file.display().to_string())?;
    }
    Ok(())
}

/// Asks a judge.
pub fn judge(args: &JudgeArgs) -> Result<()> {
    let (set, mut own) = answers_in(&args.run, args.set.as_deref())?;
    let protocol = args.protocol.unwrap_or(set.protocol);
    if let Some(file) = &args.references {
        requests::add_references(file, &mut own).context("--references")?;
    }
    let other = match &args.baseline {
        None => None,
        Some(path) => {
            let file = if path.is_dir() { answers_path(path, set.name) } else { path.clone() };
            Some(answers::baseline(&file, &own).context("--baseline")?)
        }
    };
    let prompts = match &args.judge_prompts {
        Some(file) => Prompts::with_file(file)?,
        None => Prompts::published()?,
    };
    let units = requests::units(protocol, &prompts, &own, other.as_deref())?;
    let against = other.as_ref().and_then(|other| other.first()).map(|one| one.model.clone());
    let parts: Vec<&str> =
        [set.name, protocol.name(), &args.judge_model].into_iter().chain(against.as_deref()).collect();
    let default = || args.run.join(format!("judgments_{}.jsonl", file_part(&parts.join("_"))));
    let path = args.out.clone().unwrap_or_else(default);
    let settings = judge::Settings {
        protocol,
        model: args.judge_model.clone(),
        together: args.parallel as usize,
        retry_failed: args.retry_failed,
    };
    let mut chat = Chat::new(&args.judge_server, args.judge_key.clone(), args.parallel as usize);
    let (mut progress, mut done) = (Progress::new("verdicts", false), 0);
    let mut on_units = |count: usize| {
        done += count;
        progress.set(done as u64, units.len() as u64);
    };
    let verdicts = judge::run(&path, &units, &settings, &mut chat, &mut on_units)?;
    drop(progress);
    let about = json!({"set": set.name, "protocol": protocol.name(), "judge": args.judge_model,
        "model": own.first().map(|one| &one.model), "baseline": against, "answers": set.rules.version(),
        "seed": args.seed, "bayan": env!("CARGO_PKG_VERSION")});
    show(&verdicts, protocol, &about, &path, args.seed, args.json)
}

/// Reads verdicts of other programs.
pub fn import(args: &ImportArgs) -> Result<()> {
    let (set, own) = answers_in(&args.run, args.set.as_deref())?;
    let (protocol, verdicts) = import::read(args.layout.layout(), &args.from, &own)?;
    let stem = args.from.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let path = args.run.join(format!("imported_{}.jsonl", file_part(&format!("{}_{stem}", set.name))));
    let text: String = verdicts
        .iter()
        .map(|one| {
            let line = json!({"question_id": one.id, "category": one.category, "turn": one.turn, "value": one.value,
                "failure": one.failure});
            format!("{line}\n")
        })
        .collect();
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let about = json!({"set": set.name, "protocol": protocol.name(), "from": args.from,
        "model": own.first().map(|one| &one.model), "answers": set.rules.version(), "seed": args.seed,
        "bayan": env!("CARGO_PKG_VERSION")});
    show(&verdicts, protocol, &about, &path, args.seed, args.json)
}

/// Writes the scores beside the verdicts and prints them.
fn show(verdicts: &[Judgment], protocol: Protocol, about: &Value, path: &Path, seed: u64, as_json: bool) -> Result<()> {
    let (parts, scale) = (scores::parts(verdicts, seed), Scale::of(protocol));
    let results = scores::to_json(&parts, scale, about);
    let file = path.with_extension("json");
    std::fs::write(&file, format!("{results:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    if as_json {
        return output::json(&results);
    }
    output::line(&output::table(&scores::HEADINGS, &scores::table(&parts, scale)))?;
    let failed: Vec<&Judgment> = verdicts.iter().filter(|one| one.failure.is_some()).collect();
    if let Some(first) = failed.first() {
        let why = first.failure.as_deref().unwrap_or_default();
        output::note(&format!(
            "{} of {} verdicts could not be read and {}; the first is on question {}: {why}",
            failed.len(),
            verdicts.len(),
            if scale == Scale::Judged { "count as 0, as in lighteval" } else { "are in no score" },
            first.id
        ));
    }
    output::note(&format!("{} ({}): {}", scale.name(), protocol.name(), file.display()));
    Ok(())
}
