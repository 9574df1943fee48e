//! `bayan quantize`: writes a checkpoint in smaller formats, a few MiB at a time. The new directory is complete or
//! absent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use bayan_gpu::block_on;
use bayan_weights::{Coverage, FORMATS, Format, Policy, Report, WriteOptions, quantize_checkpoint};
use clap::Args;
use serde_json::{Value, json};

use crate::support::options::format_parser;
use crate::support::output::{self, Progress};

/// Flags of `bayan quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// Directory of the checkpoint
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Directory to write; it must not exist, unless --overwrite is given
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Format of the linear layers
    #[arg(long, value_name = "FORMAT", value_parser = format_parser(), ignore_case = true)]
    format: &'static dyn Format,
    #[arg(
        long,
        value_name = "FORMAT",
        value_parser = format_parser(),
        ignore_case = true,
        hide_possible_values = true,
        help = embedding_help()
    )]
    embedding: Option<&'static dyn Format>,
    /// Format of the output head, where it is not the embedding [default: as the embedding's]
    #[arg(long, value_name = "FORMAT", value_parser = format_parser(), ignore_case = true, hide_possible_values = true)]
    head: Option<&'static dyn Format>,
    /// Weight errors by the importance of each input: a file of `bayan imatrix`, or of llama.cpp
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Replace OUT if it is a checkpoint
    #[arg(long)]
    overwrite: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn embedding_help() -> String {
    let beside = |finer: &&'static dyn Format| {
        let is_finer = |format: &&&'static dyn Format| format.finer().is_some_and(|own| own.name() == finer.name());
        let names: Vec<&str> = FORMATS.iter().filter(is_finer).map(|format| format.name()).collect();
        (!names.is_empty()).then(|| format!("{} beside {}", finer.name(), names.join(", ")))
    };
    let defaults: Vec<String> = FORMATS.iter().filter_map(beside).collect();
    format!("Format of the token embedding [default: {}; else as --format]", defaults.join("; "))
}

/// Quantizes a checkpoint.
///
/// # Errors
/// Files cannot be read or written; OUT is then unchanged.
pub fn run(args: &QuantizeArgs) -> Result<ExitCode> {
    let taken = std::fs::read_dir(&args.output).is_ok_and(|mut entries| entries.next().is_some());
    if taken && !args.overwrite {
        bail!(
            "{} exists and is not empty: expected a new directory; name another, or replace it with --overwrite",
            args.output.display()
        );
    }
    let checkpoint = crate::support::open::checkpoint(Some(&args.input))?;
    let mut policy = Policy::for_format(args.format);
    policy.embedding = args.embedding.unwrap_or(policy.embedding);
    policy.head = args.head.unwrap_or(policy.head);
    let coverage = args
        .imatrix
        .as_deref()
        .map(|file| crate::support::open::apply_importance(&checkpoint, file, &mut policy))
        .transpose()?;
    crate::support::open::note_requantized(&checkpoint, &policy)?;
    let options = WriteOptions { overwrite: args.overwrite, ..WriteOptions::default() };
    crate::support::interrupt::remove_partial(&args.output);
    let mut progress = Progress::new("quantizing", false);
    let report = block_on(quantize_checkpoint(&checkpoint, &args.output, &policy, &options, &mut |step| {
        progress.message(step.tensor);
        progress.set(step.weights_done, step.weights_total);
    }))?;
    drop(progress);
    if args.json {
        output::json(&as_json(&report, checkpoint.size_bytes(), coverage.as_ref()))?;
    } else {
        print(&report, checkpoint.size_bytes(), &args.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

struct Group {
    tensors: usize,
    weights: u64,
    size_bytes: u64,
    worst: (f64, String),
}

fn groups(report: &Report) -> BTreeMap<&'static str, Group> {
    let mut groups = BTreeMap::new();
    for tensor in &report.tensors {
        let group = groups.entry(tensor.format.name()).or_insert_with(|| Group {
            tensors: 0,
            weights: 0,
            size_bytes: 0,
            worst: (0.0, String::new()),
        });
        group.tensors += 1;
        group.weights += tensor.weights;
        group.size_bytes += tensor.size_bytes;
        if tensor.relative_error > group.worst.0 {
            group.worst = (tensor.relative_error, tensor.name.clone());
        }
    }
    groups
}

fn print(report: &Report, before_bytes: u64, out: &std::path::Path) -> Result<()> {
    let rows: Vec<Vec<String>> = groups(report)
        .into_iter()
        .map(|(name, group)| {
            let bits = group.size_bytes as f64 * 8.0 / group.weights.max(1) as f64;
            let worst = if group.worst.0 > 0.0 {
                format!("{:.2e} {}", group.worst.0, group.worst.1)
            } else {
                "exact".to_string()
            };
            vec![
                name.to_string(),
                group.tensors.to_string(),
                output::count(group.weights),
                output::size(group.size_bytes),
                format!("{bits:.2}"),
                worst,
            ]
        })
        .collect();
    output::line(&output::table(
        &["format", "tensors", "weights", "size", "bits/weight", "largest relative error"],
        &rows,
    ))?;
    if !report.skipped.is_empty() {
        output::line(&format!("tensors left out because they hold no weights: {}", report.skipped.join(", ")))?;
    }
    let (after, bits) = (report.size_bytes(), report.bits_per_weight());
    output::line(&format!(
        "{}: {} → {}, {bits:.2} bits per weight",
        out.display(),
        output::size(before_bytes),
        output::size(after)
    ))
}

fn as_json(report: &Report, before_bytes: u64, coverage: Option<&Coverage>) -> Value {
    let tensor = |t: &bayan_weights::TensorReport| json!({"name": t.name, "format": t.format.name(), "weights": t.weights, "bytes": t.size_bytes, "relative_error": t.relative_error});
    json!({
        "bytes_before": before_bytes,
        "bytes": report.size_bytes(),
        "weights": report.weights(),
        "bits_per_weight": report.bits_per_weight(),
        "weighed_by_imatrix": coverage.map(|coverage| coverage.covered),
        "skipped": report.skipped,
        "tensors": report.tensors.iter().map(tensor).collect::<Vec<_>>(),
    })
}
