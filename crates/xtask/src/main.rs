//! The tasks of the repository: `cargo xtask chat`, `test`, `web`, `peers`, `clients`, `load`,
//! `real`, `kernels`.
//!
//! It is a program of the workspace, so that a machine with only Rust can run every task. Rejected: shell scripts and a
//! task runner, because each would be one more program to install first. It has few dependencies, so that it is built
//! in seconds, and never links the crates that it builds.

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod chat;
mod clients;
mod kernels;
mod load;
mod packages;
mod peers;
mod process;
mod real;
mod serve;
mod test;
mod tools;
mod vulkan;
mod wasm;
mod web;
mod workspace;

/// Set-up, tests, the web build and comparisons.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Set up what is missing, build `bayan`, and open a chat; further arguments go to `bayan chat`.
    #[command(disable_help_flag = true)]
    Chat {
        /// Arguments of `bayan chat`, e.g. `--model DIR`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Set up what the tests need and run all of them.
    Test {
        /// Formatting, lints and the quick tests only.
        #[arg(long)]
        quick: bool,
    },
    /// Build the browser engine and the page, and serve them.
    Web(web::WebArguments),
    /// Run other programs and Bayan in turn on the same checkpoint and device, and print the ratios.
    Peers(peers::PeersArguments),
    /// Ask `bayan serve` with the official clients of OpenAI and Anthropic for Python.
    Clients(clients::ClientsArguments),
    /// Measure a server under load, and cut requests at random.
    Load(load::LoadArguments),
    /// Compare with llama.cpp on real GGUF files: token ids, greedy text, perplexity, chat rendering.
    Real(real::RealArguments),
    /// Compile the kernels of real models for GPUs that are not here, and print what they would cost.
    Kernels(kernels::KernelsArguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Chat { arguments } => chat::run(&arguments),
        Task::Test { quick } => test::run(quick),
        Task::Web(arguments) => web::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Peers(arguments) => peers::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Clients(arguments) => clients::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Load(arguments) => load::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Real(arguments) => real::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Kernels(arguments) => kernels::run(&arguments),
    };
    report(result)
}

/// Prints an error with its causes; returns the exit code of the program.
fn report(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
