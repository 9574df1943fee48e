//! `bayan generate`: continues one prompt, or the prompts of a file, several at a time.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bayan_generate::{Answer, Constraint, EngineOptions, FinishReason, Generation, Model};
use bayan_gpu::block_on;
use clap::Args;
use serde_json::{Value, json};

use crate::support::interrupt::{self, Answering};
use crate::support::options::ModelArgs;
use crate::support::output;
use crate::support::output::Progress;
use crate::support::sampling::SamplingArgs;
use crate::support::speculation::{self, SpeculationArgs};
use crate::support::text::{SYSTEM_IN_USER, input};

/// Flags of `bayan generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The prompt; without it and without --file, the prompt is read from stdin
    #[arg(value_name = "PROMPT", conflicts_with_all = ["prompt", "file"])]
    text: Option<String>,
    /// The prompt, as a flag
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    prompt: Option<String>,
    /// Read the prompt from a file; `-` is stdin
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Treat every line as a separate prompt; the answers are printed as JSON lines in the same order
    #[arg(long)]
    lines: bool,
    /// With --lines: number of prompts answered in parallel, each with its own context
    #[arg(long, visible_alias = "np", value_name = "N", default_value_t = 1, requires = "lines", value_parser = clap::value_parser!(u32).range(1..=256))]
    parallel: u32,
    /// With --lines: go on with the other prompts when one is refused, and print its error as a JSON line
    #[arg(long, requires = "lines")]
    keep_going: bool,
    /// Treat the prompt as a user's message, with the model's chat template
    #[arg(long)]
    chat: bool,
    /// System message before the conversation; with --chat
    #[arg(long, env = "BAYAN_SYSTEM", value_name = "TEXT")]
    system: Option<String>,
    /// Print JSON at the end instead of streaming text
    #[arg(long)]
    json: bool,
    /// Answer with JSON that the JSON schema in this file allows
    #[arg(long, value_name = "FILE", group = "constraint")]
    json_schema: Option<PathBuf>,
    /// Answer with text that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX", group = "constraint")]
    regex: Option<String>,
    /// Answer with text of the grammar in this file (Lark, in llguidance's variant)
    #[arg(long, value_name = "FILE", group = "constraint")]
    grammar: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// The reason why an answer ended, with OpenAI's term where there is one.
pub fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ContextFull => "context_full",
        FinishReason::Stopped => "interrupted",
        FinishReason::GrammarFault => "grammar_fault",
    }
}

/// Generates one answer, or with `--lines` one for each line.
///
/// # Errors
/// The model or the prompt does not fit.
pub fn run(args: &GenerateArgs) -> Result<ExitCode> {
    let prompt = input(args.text.as_deref().or(args.prompt.as_deref()), args.file.as_deref(), "prompt")?;
    interrupt::set_up();
    if args.lines {
        return lines(args, &prompt);
    }
    let mut loaded = args.speculation.open(&args.model, EngineOptions::default())?;
    let model = &mut loaded.model;
    let generation = generation(args, model)?;
    let ids = encode(args, model, &prompt)?;
    note_system(args, model)?;
    let answering = Answering::begin(model.engine.control());
    let mut failure = None;
    let answer = block_on(model.generate(&ids, &generation, &mut |piece| {
        if !args.json
            && let Err(error) = output::piece(piece)
        {
            failure = Some(error);
            return ControlFlow::Break(());
        }
        if answering.interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }))?;
    drop(answering);
    if let Some(error) = failure {
        return Err(error);
    }
    let context = model.engine.context();
    if args.json {
        output::json(&result(&answer, generation.settings.seed, loaded.load.as_secs_f64()))?;
    } else {
        output::line("")?;
    }
    if answer.usage.finish == FinishReason::ContextFull {
        output::note(&format!(
            "the answer was cut because the context of {context} positions is full; use a longer one with `--context {}`",
            2 * context
        ));
    }
    Ok(match answer.usage.finish {
        FinishReason::Stopped => ExitCode::from(130),
        FinishReason::GrammarFault => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// The sampling settings, with the constraint compiled.
fn generation(args: &GenerateArgs, model: &Model) -> Result<Generation> {
    let settings = args.sampling.generation(&model.defaults, model.engine.decoder().sizes().vocab_size)?;
    let read = |file: &Path| std::fs::read_to_string(file).with_context(|| file.display().to_string());
    let constraint = if let Some(file) = &args.json_schema {
        let schema = serde_json::from_str(&read(file)?);
        Some(Constraint::JsonSchema(schema.with_context(|| format!("{}: expected JSON", file.display()))?))
    } else if let Some(file) = &args.grammar {
        Some(Constraint::Lark(read(file)?))
    } else {
        args.regex.clone().map(Constraint::Regex)
    };
    let compile = |constraint: Constraint| model.tokenizer.grammars()?.compile(&constraint);
    Ok(Generation { grammar: constraint.map(compile).transpose()?, ..settings })
}

fn encode(args: &GenerateArgs, model: &Model, prompt: &str) -> Result<Vec<u32>> {
    Ok(if args.chat { model.chat_prompt(&messages(args, prompt))? } else { model.tokenizer.encode_prompt(prompt)? })
}

/// Says once that the template has no system role, if that matters.
fn note_system(args: &GenerateArgs, model: &Model) -> Result<()> {
    if args.chat && args.system.is_some() && model.system_in_user(&messages(args, ""))? {
        output::note(SYSTEM_IN_USER);
    }
    Ok(())
}

/// Answers each line that is not empty. `index` in the output is the number of the line in the input, from 0.
fn lines(args: &GenerateArgs, text: &str) -> Result<ExitCode> {
    let prompts: Vec<(usize, &str)> = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
    if prompts.is_empty() {
        bail!("no prompt was given: expected at least one line that is not empty");
    }
    let sequences = (args.parallel as usize).min(prompts.len());
    let mut loaded = args.speculation.open(&args.model, EngineOptions { sequences, ..Default::default() })?;
    let model = &mut loaded.model;
    let generation = generation(args, model)?;
    let (mut ids, mut indexes, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for (index, prompt) in prompts {
        let fits = |ids: Vec<u32>| model.engine.check_prompt(&ids).map(|()| ids).map_err(anyhow::Error::from);
        match encode(args, model, prompt).and_then(fits) {
            Ok(prompt) => {
                ids.push(prompt);
                indexes.push(index);
            }
            Err(error) if args.keep_going => refused.push((index, error)),
            Err(error) => {
                let remedy = "with --keep-going the other lines are answered";
                return Err(error.context(format!("line {} is refused; {remedy}", index + 1)));
            }
        }
    }
    note_system(args, model)?;
    let mut progress = Progress::new("answering", false);
    let mut started = vec![false; ids.len()];
    let answering = Answering::begin(model.engine.control());
    let answers = block_on(model.generate_many(&ids, &generation, &mut |index, _| {
        started[index] = true;
        progress.set(started.iter().filter(|begun| **begun).count() as u64, ids.len() as u64);
        if answering.interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }))?;
    drop((answering, progress));
    let answered = answers.iter().zip(indexes).map(|(answer, index)| {
        let mut line = result(answer, generation.settings.seed, loaded.load.as_secs_f64());
        line["index"] = json!(index);
        (index, line)
    });
    let failed =
        refused.iter().map(|(index, error)| (*index, json!({"index": index, "error": output::describe(error)})));
    let mut printed: Vec<(usize, Value)> = answered.chain(failed).collect();
    printed.sort_by_key(|(index, _)| *index);
    for (_, line) in printed {
        output::line(&line.to_string())?;
    }
    if answers.iter().any(|answer| answer.usage.finish == FinishReason::Stopped) {
        return Ok(ExitCode::from(130));
    }
    let faults = answers.iter().filter(|answer| answer.usage.finish == FinishReason::GrammarFault).count();
    if faults > 0 {
        output::note(&format!("the grammar failed in {faults} of {} answers, which are incomplete", answers.len()));
        return Ok(ExitCode::FAILURE);
    }
    if !refused.is_empty() {
        output::note(&format!("{} of {} lines were refused", refused.len(), refused.len() + answers.len()));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn messages(args: &GenerateArgs, prompt: &str) -> Vec<Value> {
    let system = args.system.iter().map(|text| json!({"role": "system", "content": text}));
    // The newline at the end of a file or a pipe is not part of the prompt.
    system.chain([json!({"role": "user", "content": prompt.trim_end_matches(['\n', '\r'])})]).collect()
}

fn millis(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e3
}

fn result(answer: &Answer, seed: u64, load_seconds: f64) -> Value {
    let usage = &answer.usage;
    json!({
        "text": answer.text,
        "ids": answer.ids,
        "finish_reason": finish_reason(usage.finish),
        "seed": seed,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.generated_tokens,
            "total_tokens": usage.prompt_tokens + usage.generated_tokens,
            "completion_tokens_details": speculation::details(usage),
        },
        "timings": {
            "load_ms": millis(load_seconds),
            "prompt_ms": millis(usage.prefill_seconds),
            "predicted_ms": millis(usage.decode_seconds),
        },
    })
}
