//! `bayan merge`: merges adapters into their base, a few MiB at a time. The new directory is complete or absent.
//!
//! For a dense format the sum is rounded once and the loss of precision is small. The steps of a quantized format may
//! be larger than the adapter's changes; then the outputs of both models are measured, and a large loss is reported.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bayan_generate::{Engine, EngineOptions};
use bayan_gpu::block_on;
use bayan_models::{Adapter, CacheFormat};
use bayan_train::{MergeFormat, MergeReport, merge};
use bayan_weights::formats::{F16, F32};
use bayan_weights::{Bf16, Checkpoint, DirectorySource, Dtype, Format, Policy, Stored, WriteOptions};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser};
use serde_json::json;

use crate::support::options::{AdapterArg, CheckpointArgs, DeviceArgs, format_argument, format_values};
use crate::support::output::{self, Progress};
use crate::support::{interrupt, open, text};

/// A larger fraction of the adapter's effect lost in rounding causes a warning.
const WARN_ABOVE: f64 = 0.25;

/// Text on which outputs are compared.
const SAMPLE_TEXT: &str = "السلام عليكم، كيف حالك اليوم؟ ما عاصمة مصر؟ اشرح لي باختصار كيف أصنع الشاي.";

/// Flags of `bayan merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Directory of the base model, or `embedded`
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// Directory to write; it must not exist, unless --overwrite is given
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// LoRA adapter in PEFT's layout: its directory, and a factor on its scale (repeatable)
    #[arg(long, value_name = "DIR[:SCALE]", required = true, value_parser = AdapterArg::parse)]
    adapter: Vec<AdapterArg>,
    /// Format of the matrices [default: the base's own, f16 for a quantized one]
    #[arg(
        long,
        value_name = "FORMAT",
        value_parser = PossibleValuesParser::new(format_values().chain([bf16()])),
        ignore_case = true
    )]
    format: Option<String>,
    /// Measure how the merge changes the logits; always done for a quantized format
    #[arg(long)]
    measure: bool,
    /// Replace OUT if it is a checkpoint
    #[arg(long)]
    overwrite: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

fn bf16() -> PossibleValue {
    PossibleValue::new(Bf16.name()).help(Bf16.help())
}

/// Merges adapters.
///
/// # Errors
/// Files cannot be read or written, or an adapter belongs to another base; OUT is then unchanged.
pub fn run(args: &MergeArgs) -> Result<ExitCode> {
    let taken = std::fs::read_dir(&args.output).is_ok_and(|mut entries| entries.next().is_some());
    if taken && !args.overwrite {
        bail!(
            "{} exists and is not empty: expected a new directory; name another, or replace it with --overwrite",
            args.output.display()
        );
    }
    let same = |a: &Path| std::fs::canonicalize(a).ok();
    if taken && same(&args.base) == same(&args.output) {
        bail!(
            "{} is the directory of the base model: expected another directory for the output",
            args.output.display()
        );
    }
    let checkpoint = open::checkpoint(Some(&args.base))?;
    let head_dim = bayan_models::sizes(&checkpoint)?.head_dim;
    let adapters = args
        .adapter
        .iter()
        .map(|argument| Ok((read(&argument.path, head_dim)?, argument.scale)))
        .collect::<Result<Vec<_>>>()?;
    let format = format(args.format.as_deref(), &checkpoint)?;
    let options = WriteOptions { overwrite: args.overwrite, ..WriteOptions::default() };
    interrupt::remove_partial(&args.output);
    let mut progress = Progress::new("merging", false);
    let report = block_on(merge(&checkpoint, &adapters, &args.output, &format, &options, &mut |step| {
        progress.message(step.tensor);
        progress.set(step.weights_done, step.weights_total);
    }))?;
    drop(progress);
    let measured = match (&format, args.measure) {
        (MergeFormat::Dense(_), false) => None,
        _ if adapters.iter().any(|(adapter, _)| adapter.require_plain().is_err()) => {
            output::note(
                "the change of the logits was not measured: an adapter with more than pairs of linear layers cannot \
                 run beside its base",
            );
            None
        }
        _ => Some(measure(args, &checkpoint, &adapters)?),
    };
    print(args, &report, measured.as_ref())?;
    Ok(ExitCode::SUCCESS)
}

fn read(directory: &Path, head_dim: usize) -> Result<Adapter> {
    let source = DirectorySource::new(directory).with_context(|| format!("--adapter {}", directory.display()))?;
    block_on(Adapter::open_for(Rc::new(source), head_dim)).with_context(|| format!("--adapter {}", directory.display()))
}

fn format(name: Option<&str>, checkpoint: &Checkpoint) -> Result<MergeFormat> {
    let stored = checkpoint.tensors().iter().filter(|entry| entry.shape.len() == 2).map(|entry| entry.stored);
    let own =
        || match stored.clone().find_map(|stored| if let Stored::Dense(dtype) = stored { Some(dtype) } else { None }) {
            Some(Dtype::F32) => "f32",
            Some(Dtype::Bf16) => "bf16",
            _ => "f16",
        };
    let name = name.unwrap_or_else(own).to_lowercase();
    Ok(match name.as_str() {
        "f32" => MergeFormat::Dense(&F32),
        "f16" => MergeFormat::Dense(&F16),
        "bf16" => MergeFormat::Dense(&Bf16),
        _ => MergeFormat::Quantized(Policy::for_format(
            format_argument(&name).map_err(|problem| anyhow::anyhow!("--format {name}: {problem}, or bf16"))?,
        )),
    })
}

/// Differences of outputs, as root mean squares of logits.
struct Measured {
    /// Base with unmerged adapter, compared with the base alone.
    adapter: f64,
    /// Merged model, compared with the base with unmerged adapter.
    lost: f64,
}

impl Measured {
    fn part_lost(&self) -> f64 {
        if self.adapter > 0.0 { self.lost / self.adapter } else { 0.0 }
    }
}

fn measure(args: &MergeArgs, checkpoint: &Checkpoint, adapters: &[(Adapter, f32)]) -> Result<Measured> {
    let ids = text::pipeline(&CheckpointArgs { model: Some(args.base.clone()), chat_template: None })?
        .tokenizer
        .encode(SAMPLE_TEXT, true)?;
    let device = crate::support::device::open(&args.device)?;
    let open_engine = |checkpoint: &Checkpoint| -> Result<Engine> {
        let options =
            EngineOptions { context: Some(ids.len().max(2)), cache: CacheFormat::F32, ..EngineOptions::default() };
        let mut progress = Progress::new("measuring: loading", true);
        Ok(device.engine(checkpoint, &options, &mut |done, total| progress.set(done, total))?)
    };
    let (alone, beside) = {
        let mut engine = open_engine(checkpoint)?;
        let alone = block_on(engine.logits(&ids, true))?;
        for (number, (adapter, scale)) in adapters.iter().enumerate() {
            engine.attach(&number.to_string(), adapter, *scale)?;
        }
        (alone, block_on(engine.logits(&ids, true))?)
    };
    let merged = block_on(open_engine(&open::checkpoint(Some(&args.output))?)?.logits(&ids, true))?;
    let distance = |a: &[Vec<f32>], b: &[Vec<f32>]| {
        let (sum, count) = a
            .iter()
            .flatten()
            .zip(b.iter().flatten())
            .fold((0.0, 0usize), |(sum, count), (a, b)| (sum + f64::from(a - b).powi(2), count + 1));
        (sum / count.max(1) as f64).sqrt()
    };
    Ok(Measured { adapter: distance(&alone, &beside), lost: distance(&beside, &merged) })
}

fn print(args: &MergeArgs, report: &MergeReport, measured: Option<&Measured>) -> Result<()> {
    let lost = measured.map(Measured::part_lost);
    if args.json {
        return output::json(&json!({
            "output": args.output, "merged": report.merged, "tensors": report.tensors, "bytes": report.size_bytes,
            "relative_change": report.relative_change, "rounding_to_change": report.rounding,
            "adapter_logit_rms": measured.map(|m| m.adapter), "lost_logit_rms": measured.map(|m| m.lost), "part_lost": lost,
        }));
    }
    let path = args.output.display();
    output::line(&format!(
        "{path}: {} of {} tensors changed, {}",
        report.merged,
        report.tensors,
        output::size(report.size_bytes)
    ))?;
    let (change, rounding) = (100.0 * report.relative_change, report.rounding);
    output::line(&format!(
        "the adapter changes these weights by {change:.2} %; the rounding error of the format is {rounding:.3} of that change"
    ))?;
    if let Some(measured) = measured {
        let text = format!(
            "logits: the adapter changes them by {:.4} (root mean square); the merged model differs by {:.4} from base and separate adapter, {:.0} % of that change",
            measured.adapter,
            measured.lost,
            100.0 * measured.part_lost()
        );
        output::line(&text)?;
    }
    if lost.is_some_and(|lost| lost > WARN_ABOVE) {
        let remedy = "keep the adapter separate (--adapter), or merge to bf16 or f16";
        output::note(&format!(
            "warning: rounding to this format removes {:.0} % of the adapter's effect on the logits; {remedy}",
            100.0 * lost.unwrap_or(0.0)
        ));
    }
    Ok(())
}
