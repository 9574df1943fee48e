//! `bayan perplexity`: how well a model predicts a text, and how much a quantized model differs from the original.
//!
//! Windows of the context's length advance over the text by the stride; each token is counted once, in the first window
//! that contains it, with at least context − stride tokens before it (but for the first window). The divergence from a
//! second model compares whole distributions at the same positions: it shows what quantization changed, while
//! perplexity, which considers one token, may even improve by chance.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bayan_generate::{Model, log_sum, most_likely};
use bayan_gpu::block_on;
use clap::Args;
use serde_json::json;

use crate::support::options::ModelArgs;
use crate::support::output::{self, Progress};
use crate::support::{open, text};

const DEFAULT_CONTEXT: usize = 512;

/// Flags of `bayan perplexity`.
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// The text; `-` is stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Tokens between the starts of two windows [default: half of the context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    stride: Option<u64>,
    /// Compare with this checkpoint in its stored format: Kullback-Leibler divergence of the predicted distributions
    #[arg(long, value_name = "DIR|FILE|NAME")]
    base: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Sums over the counted positions.
#[derive(Debug, Default)]
struct Sums {
    count: usize,
    nll: f64,
    nll_squares: f64,
    base_nll: f64,
    divergences: Vec<f64>,
    agreed: usize,
}

/// Σ p (ln p − ln q), where p is the base's distribution.
fn divergence(base: &[f32], row: &[f32]) -> f64 {
    let (base_sum, sum) = (log_sum(base), log_sum(row));
    base.iter()
        .zip(row)
        .map(|(&b, &r)| (f64::from(b) - base_sum, f64::from(r) - sum))
        .map(|(p, q)| p.exp() * (p - q))
        .sum::<f64>()
        .max(0.0)
}

impl Sums {
    fn add(&mut self, row: &[f32], base: Option<&[f32]>, next: u32) -> Result<()> {
        let logit = |row: &[f32]| {
            row.get(next as usize).map(|&logit| f64::from(logit)).context("a token outside the model's vocabulary")
        };
        let nll = log_sum(row) - logit(row)?;
        self.count += 1;
        self.nll += nll;
        self.nll_squares += nll * nll;
        if let Some(base) = base {
            if base.len() != row.len() {
                bail!(
                    "--base has a vocabulary of {} tokens and the model one of {}: expected two versions of one model",
                    base.len(),
                    row.len()
                );
            }
            self.base_nll += log_sum(base) - logit(base)?;
            self.divergences.push(divergence(base, row));
            self.agreed += usize::from(most_likely(base) == most_likely(row));
        }
        Ok(())
    }
}

/// Measures and prints the results.
///
/// # Errors
/// The text is too short, or the model cannot be loaded.
pub fn run(args: &PerplexityArgs) -> Result<ExitCode> {
    let text = text::input(None, Some(&args.file), "the text")?;
    let mut model = open::model(&args.model, Some(DEFAULT_CONTEXT))?.model;
    let mut base = args.base.as_deref().map(|path| open_base(args, path)).transpose()?;
    let ids = model.tokenizer.encode(&text, true)?;
    if ids.len() < 2 {
        bail!("{}: expected a text of at least two tokens, got {}", args.file.display(), ids.len());
    }
    let context = model.engine.context().min(base.as_ref().map_or(usize::MAX, |base| base.engine.context()));
    let stride = args.stride.map_or(context / 2, |n| n as usize).clamp(1, context - 1);
    let mut sums = Sums::default();
    let mut progress = Progress::new("reading", false);
    // Targets are the tokens from 1 on; `seen` of them have been counted.
    let (mut start, mut seen) = (0, 1);
    while seen < ids.len() {
        let end = ids.len().min(start + context);
        let window = &ids[start..end];
        let rows = block_on(model.engine.logits(window, true))?;
        let base_rows = base.as_mut().map(|base| block_on(base.engine.logits(window, true))).transpose()?;
        for target in seen..end {
            let at = target - start - 1;
            sums.add(&rows[at], base_rows.as_ref().map(|rows| rows[at].as_slice()), ids[target])?;
        }
        (seen, start) = (end, start + stride);
        progress.set(seen as u64, ids.len() as u64);
    }
    drop(progress);
    report(args, &sums, context, stride)?;
    Ok(ExitCode::SUCCESS)
}

fn open_base(args: &PerplexityArgs, path: &Path) -> Result<Model> {
    let mut base = args.model.clone();
    base.checkpoint.model = Some(path.to_path_buf());
    base.quantize = None;
    base.adapter.clear();
    Ok(open::model(&base, Some(DEFAULT_CONTEXT)).context("--base")?.model)
}

fn report(args: &PerplexityArgs, sums: &Sums, context: usize, stride: usize) -> Result<()> {
    let count = sums.count as f64;
    let mean = sums.nll / count;
    let deviation = (sums.nll_squares / count - mean * mean).max(0.0).sqrt() / count.sqrt();
    let compared = args.base.as_ref().map(|_| {
        let mut sorted = sums.divergences.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| sorted[((sorted.len() - 1) as f64 * part) as usize];
        (
            sums.divergences.iter().sum::<f64>() / count,
            at(0.5),
            at(0.99),
            at(1.0),
            (sums.base_nll / count).exp(),
            sums.agreed as f64 / count,
        )
    });
    if args.json {
        let base = compared.map(|(mean, median, p99, most, perplexity, agreed)| {
            json!({"perplexity": perplexity, "mean_kl": mean, "median_kl": median, "p99_kl": p99, "max_kl": most, "same_best_token": agreed})
        });
        return output::json(&json!({
            "tokens": sums.count, "context": context, "stride": stride, "mean_nll": mean, "mean_nll_error": deviation, "perplexity": mean.exp(), "base": base,
        }));
    }
    output::line(&format!("{} tokens in windows of {context} with stride {stride}", sums.count))?;
    output::line(&format!("perplexity {:.4} (mean negative log-probability {mean:.5} ± {deviation:.5})", mean.exp()))?;
    if let Some((mean, median, p99, most, perplexity, agreed)) = compared {
        output::line(&format!(
            "base: perplexity {perplexity:.4}; Kullback-Leibler divergence: mean {mean:.6}, median {median:.6}, 99th percentile {p99:.6}, maximum {most:.4}"
        ))?;
        output::line(&format!(
            "both models have the same most likely token at {:.2} % of the positions",
            100.0 * agreed
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_zero_for_equal_and_that_of_coins_otherwise() {
        assert_eq!(divergence(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]), 0.0);
        // p = (1/2, 1/2), q = (3/4, 1/4): ln 2 - (ln 3) / 2
        let found = divergence(&[0.0, 0.0], &[3f32.ln(), 0.0]);
        assert!((found - (std::f64::consts::LN_2 - 3f64.ln() / 2.0)).abs() < 1e-7, "{found}");
        assert!(divergence(&[1000.0, 0.0], &[0.0, 0.0]) > 0.69);
    }
}
