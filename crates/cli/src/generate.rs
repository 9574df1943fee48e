//! `bayan generate`: one prompt, one continuation.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use bayan_generate::{Answer, Finish};
use bayan_gpu::block_on;
use clap::Args;
use serde_json::{Value, json};

use crate::interrupt::{self, Answering};
use crate::options::ModelArgs;
use crate::sampling::SamplingArgs;
use crate::text::input;
use crate::{open, output};

/// Flags of `bayan generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The prompt; without it and --file, stdin
    #[arg(value_name = "PROMPT", conflicts_with_all = ["prompt", "file"])]
    text: Option<String>,
    /// The prompt, as a flag
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    prompt: Option<String>,
    /// Read the prompt from a file; `-` is stdin
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Treat the prompt as a user's message, with the model's chat template
    #[arg(long)]
    chat: bool,
    /// Instructions that stand before the conversation; with --chat
    #[arg(long, env = "BAYAN_SYSTEM", value_name = "TEXT")]
    system: Option<String>,
    /// Print JSON at the end instead of text as it comes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Why an answer ended, in OpenAI's words where it has one.
pub fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ContextFull => "context_full",
        Finish::Stopped => "interrupted",
    }
}

/// Generates.
///
/// # Errors
/// A model, a device or a prompt that does not fit.
pub fn run(args: &GenerateArgs) -> Result<ExitCode> {
    let prompt = input(args.text.as_deref().or(args.prompt.as_deref()), args.file.as_deref(), "prompt")?;
    interrupt::set_up();
    let mut loaded = open::model(&args.model, None)?;
    let model = &mut loaded.model;
    let generation = args.sampling.generation(&model.defaults, model.engine.decoder().sizes().vocab_size)?;
    let ids = if args.chat { model.chat_prompt(&messages(args, &prompt))? } else { model.tokenizer.encode_prompt(&prompt)? };
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
    if answer.usage.finish == Finish::ContextFull {
        output::note(&format!("the context of {context} positions is full and the answer was cut; `--context {}` makes it larger", 2 * context));
    }
    Ok(if answer.usage.finish == Finish::Stopped { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

fn messages(args: &GenerateArgs, prompt: &str) -> Vec<Value> {
    let system = args.system.iter().map(|text| json!({"role": "system", "content": text}));
    // A file or a pipe ends with a newline that nobody meant.
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
        },
        "timings": {
            "load_ms": millis(load_seconds),
            "prompt_ms": millis(usage.prefill_seconds),
            "predicted_ms": millis(usage.decode_seconds),
        },
    })
}
