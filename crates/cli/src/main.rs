//! `bayan`: runs Arabic language models on any GPU from the command line.
//!
//! Each subcommand has one file in `commands`; shared code is in `support`. Flags are named as in llama.cpp and
//! OpenAI's API, so that users know them. Every subcommand lists the flags that it supports and refuses others.
//! Rejected: global flags, because most subcommands would ignore them.
//!
//! Exit codes: 0 done, 1 failed (one message on stderr), 2 wrong usage.

mod commands;
mod support;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use commands::{
    bench, caches, chat, conformance, devices, eval, export, finetune, generate, help, hub, imatrix, inspect, merge,
    ops, perplexity, quantize, serve, template, tokenize,
};
use support::output;

#[derive(Debug, Parser)]
#[command(name = "bayan", version, about = "Runs Arabic language models on any GPU", propagate_version = true)]
struct Cli {
    /// Use no network: models by name come only from the cache
    #[arg(long, env = "HF_HUB_OFFLINE", global = true, hide_env = true)]
    offline: bool,
    /// Say what is loaded and chosen; -vv what is compiled, too; RUST_LOG says it for each module
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Chat with a model
    Chat(chat::ChatArgs),
    /// Continue a prompt, or answer one question
    Generate(generate::GenerateArgs),
    /// Answer programs over HTTP, with the interfaces of OpenAI and Anthropic
    Serve(serve::ServeArgs),
    /// Convert text to token ids, and back
    Tokenize(tokenize::TokenizeArgs),
    /// Render a conversation with the model's chat template
    Template(template::TemplateArgs),
    /// Write a checkpoint in smaller formats
    Quantize(quantize::QuantizeArgs),
    /// Measure the importance of matrix inputs on a text, for `quantize --imatrix`
    Imatrix(imatrix::ImatrixArgs),
    /// Train an adapter, or all parameters, on your data
    Finetune(finetune::FinetuneArgs),
    /// Merge adapters into their base
    Merge(merge::MergeArgs),
    /// Show the contents of a checkpoint and the memory it needs
    Inspect(inspect::InspectArgs),
    /// Write a model, or an adapter, as a GGUF file for llama.cpp
    Export(export::ExportArgs),
    /// Measure how well a model predicts a text, and the effect of quantization
    Perplexity(perplexity::PerplexityArgs),
    /// Score a model on Arabic benchmarks, by the rules of their harnesses
    Eval(eval::EvalArgs),
    /// Download a model from a hub, or update it
    Pull(hub::PullArgs),
    /// List the downloaded models
    List(hub::ListArgs),
    /// Delete a downloaded model
    Remove(hub::RemoveArgs),
    /// Show what is kept on disk between runs, or delete it
    Caches(caches::CachesArgs),
    /// List GPU devices and the features that Bayan uses
    Devices(devices::DevicesArgs),
    /// Measure speed
    Bench(bench::BenchArgs),
    /// Check every operation on this device against its reference
    Ops(ops::OpsArgs),
    /// Answer a file of requests, for comparison with Hugging Face transformers
    Conformance(conformance::ConformanceArgs),
    /// Print the completions of a shell
    Completions(help::CompletionsArgs),
    /// Print the manual page, or write one for each command to a folder
    Man(help::ManArgs),
}

/// The commands and flags. An empty `BAYAN_*` variable is as one that is not set.
fn command_line() -> clap::Command {
    fn without_empty(command: clap::Command) -> clap::Command {
        let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
        command
            .mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(None) } else { arg })
            .mut_subcommands(without_empty)
    }
    without_empty(Cli::command())
}

/// The arguments; `--config` of `serve` names a file with other defaults.
fn parse() -> anyhow::Result<Cli> {
    let read =
        |command: clap::Command| Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    let cli = read(command_line());
    let file = match &cli.command {
        Command::Serve(args) => args.config(),
        _ => None,
    };
    let Some(file) = file else { return Ok(cli) };
    let mut failure = None;
    let command = command_line().mut_subcommand("serve", |serve| {
        support::config::with_file(serve.clone(), file).unwrap_or_else(|error| {
            failure = Some(error);
            serve
        })
    });
    failure.map_or_else(|| Ok(read(command)), Err)
}

fn main() -> ExitCode {
    set_runtime_dir();
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            output::print_error(&error);
            return ExitCode::from(2);
        }
    };
    output::set_up_log(matches!(&cli.command, Command::Serve(args) if args.logs_json()), cli.verbose);
    support::hub::set_offline(cli.offline);
    let result = match cli.command {
        Command::Chat(args) => chat::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Template(args) => template::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Imatrix(args) => imatrix::run(&args),
        Command::Finetune(args) => finetune::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Pull(args) => hub::pull(&args),
        Command::List(args) => hub::list(&args),
        Command::Remove(args) => hub::remove(&args),
        Command::Caches(args) => caches::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Ops(args) => ops::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Completions(args) => help::completions(&args, command_line()),
        Command::Man(args) => help::man(&args, command_line()),
    };
    match result {
        Ok(code) => code,
        // The reader closed the output, which is no error.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Mesa's software device prints a warning on every start when this variable is unset.
fn set_runtime_dir() {
    #[cfg(unix)]
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: this is the first statement of `main`; no other thread exists that could read the environment.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
}
