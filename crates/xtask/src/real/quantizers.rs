//! `cargo xtask real --quantizers`: Bayan's quantizer and llama.cpp's on the same source.
//!
//! The source is a real file with its weights written out as F16. Both programs quantize it, and the same program
//! measures how much each result differs from the source. Rejected: the size of the files, because tokenizers take up
//! to a tenth of it; the bits of all weights are compared.

use super::{files::Model, texts};
use crate::peers::llama_cpp::LlamaCpp;
use crate::{peers, process};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Types of llama.cpp and the format of Bayan that is compared with them.
const TYPES: &[(&str, &[&str])] = &[
    ("q4_0", &["q4_0"]),
    ("iq4_nl", &["iq4_nl"]),
    ("q4_k", &["q4_k_s", "q4_k_m"]),
    ("q4_1", &["q4_1"]),
    ("q5_k", &["q5_k_s", "q5_k_m"]),
    ("q5_1", &["q5_1"]),
    ("q6_k", &["q6_k"]),
    ("q8_0", &["q8_0"]),
];

/// What a quantized model has lost.
struct Loss {
    bits: f64,
    divergence: f64,
    same_best: f64,
}

/// Quantizes `path` with both programs and prints a table for docs/quality.md.
///
/// # Errors
/// A program cannot be run.
pub fn compare(model: &Model, path: &Path, bayan: &Path, peer: &LlamaCpp, cache: &Path, more: &[String]) -> Result<()> {
    let place = cache.join("quantizers");
    std::fs::create_dir_all(&place).with_context(|| format!("{} could not be made", place.display()))?;
    let page = place.join("page.txt");
    std::fs::write(&page, texts()?.page).with_context(|| format!("{} could not be written", page.display()))?;
    let source = place.join(format!("{}-f16.gguf", model.name));
    let quantize = |from: &Path, to: &Path, kind: &str| {
        peer.library(&json!({"quantize": [{"from": from, "to": to, "type": kind}]})).map(drop)
    };
    quantize(path, &source, "f16")?;
    println!(
        "\n| {} | format | bits per weight | mean KL | same best token |\n| --- | --- | --- | --- | --- |",
        model.name
    );
    for (format, types) in TYPES {
        let ours = place.join("ours");
        let mut command = Command::new(bayan);
        command.arg("quantize").arg(&source).arg(&ours).args(["--format", format, "--overwrite", "--json"]);
        process::capture(&mut command)?;
        row("Bayan", format, &measure(bayan, &ours, &source, &page, more)?);
        for kind in *types {
            let theirs: PathBuf = place.join("theirs.gguf");
            quantize(&source, &theirs, kind)?;
            row("llama.cpp", kind, &measure(bayan, &theirs, &source, &page, more)?);
        }
    }
    std::fs::remove_dir_all(&place).with_context(|| format!("{} could not be removed", place.display()))
}

fn row(program: &str, format: &str, loss: &Loss) {
    let (bits, divergence, same) = (loss.bits, loss.divergence, 100.0 * loss.same_best);
    println!("| {program} | {format} | {bits:.2} | {divergence:.5} | {same:.1} % |");
}

fn measure(bayan: &Path, model: &Path, source: &Path, page: &Path, more: &[String]) -> Result<Loss> {
    let mut inspect = Command::new(bayan);
    let stored = peers::last_json(&process::capture(inspect.arg("inspect").arg(model).arg("--json"))?);
    let bits = bits_per_weight(&stored.context("bayan inspect printed no JSON")?)?;
    let mut command = Command::new(bayan);
    command.arg("perplexity").arg(page).arg("--model").arg(model).arg("--base").arg(source).arg("--json").args(more);
    let found = peers::last_json(&process::capture(&mut command)?).context("bayan perplexity printed no JSON")?;
    let number = |key: &str| found["base"][key].as_f64().with_context(|| format!("expected base.{key}, got {found}"));
    Ok(Loss { bits, divergence: number("mean_kl")?, same_best: number("same_best_token")? })
}

/// Bits of all stored tensors, from `bayan inspect --json`.
fn bits_per_weight(inspected: &Value) -> Result<f64> {
    let groups = inspected["stored"].as_object().context("expected stored")?;
    let sum = |key: &str| groups.values().filter_map(|group| group[key].as_f64()).sum::<f64>();
    let (bytes, weights) = (sum("bytes"), sum("weights"));
    anyhow::ensure!(weights > 0.0, "expected weights, got {inspected}");
    Ok(8.0 * bytes / weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_all_tensors() {
        let groups = json!({"stored": {"Q4_0": {"bytes": 18, "weights": 32}, "F16": {"bytes": 64, "weights": 32}}});
        assert_eq!(bits_per_weight(&groups).expect("weights"), 10.25);
        assert!(bits_per_weight(&json!({"stored": {}})).is_err());
    }
}
