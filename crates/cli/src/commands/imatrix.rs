//! `bayan imatrix`: measures the importance of each matrix input on a text, so that quantization errs less on the
//! important inputs.
//!
//! The name and the method are llama.cpp's. The text is divided into windows of the context's length; it should
//! resemble what the model will be used for, chat template included, and some tens of thousands of tokens are enough.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bayan_gpu::block_on;
use clap::Args;
use serde_json::json;

use crate::support::options::ModelArgs;
use crate::support::output::{self, Progress};
use crate::support::{open, text};

const DEFAULT_CONTEXT: usize = 512;

/// Flags of `bayan imatrix`.
#[derive(Debug, Args)]
pub struct ImatrixArgs {
    /// The text; `-` is stdin
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "OUT", default_value = "imatrix.safetensors")]
    output: PathBuf,
    /// Maximum number of tokens to read
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tokens: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Measures and writes the file.
///
/// # Errors
/// The text is empty, the file cannot be written, or the model cannot be loaded.
pub fn run(args: &ImatrixArgs) -> Result<ExitCode> {
    let text = text::input(None, Some(&args.file), "the text")?;
    let mut model = open::model(&args.model, Some(DEFAULT_CONTEXT))?.model;
    let mut ids = model.tokenizer.encode(&text, true)?;
    ids.truncate(args.tokens.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX)));
    if ids.is_empty() {
        bail!("{}: expected a text of at least one token, got none", args.file.display());
    }
    let windows: Vec<&[u32]> = ids.chunks(model.engine.context()).collect();
    let mut progress = Progress::new("reading", false);
    let total = ids.len() as u64;
    let importance = block_on(model.engine.importance(&windows, &mut |done| progress.set(done, total)))?;
    drop(progress);
    std::fs::write(&args.output, importance.to_bytes())
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    let matrices = importance.columns().len();
    if args.json {
        output::json(&json!({"tokens": importance.tokens(), "matrices": matrices, "file": args.output}))?;
    } else {
        output::line(&format!(
            "{}: importance of the inputs of {matrices} matrices, measured on {total} tokens",
            args.output.display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
