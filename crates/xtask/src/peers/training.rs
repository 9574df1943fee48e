//! `cargo xtask peers --train`: a LoRA step of Bayan compared with one of PEFT on PyTorch's CPU backend, over the same
//! random checkpoint.

use super::{checkpoint, last_json};
use crate::{chat, process, vulkan, workspace};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compared releases. After an update by hand, measure again.
const PACKAGES: [&str; 3] = ["torch", "transformers", "peft==0.21.2"];

/// The workload of both programs.
pub struct Training {
    /// Tokens of the single sequence.
    pub tokens: usize,
    /// LoRA rank on all linear layers.
    pub rank: usize,
    /// Timed steps.
    pub repetitions: usize,
    /// A Python with the packages, instead of a new environment.
    pub python: Option<PathBuf>,
}

/// Prepares, measures with and without gradient checkpointing, and prints.
pub fn run(training: &Training, shape: &checkpoint::Shape, further: &[String]) -> Result<()> {
    vulkan::set_up()?;
    let cache = workspace::target_dir()?.join("peers");
    let python = python(&cache, training.python.as_deref())?;
    let bayan = chat::build_bayan()?;
    let checkpoint = checkpoint::ensure(shape, &cache)?;
    println!(
        "\n{}, LoRA of rank {} on all linear layers, f32, one sequence of {} tokens, tokens per second",
        shape.name, training.rank, training.tokens
    );
    println!("{:<12} {:>10} {:>10} {:>8}", "checkpointing", "PEFT", "Bayan", "ratio");
    let (mut peer, mut ours) = (String::new(), String::new());
    for recompute in [true, false] {
        let (theirs, version) = measure_peft(&python, &cache, &checkpoint.directory, training, recompute)?;
        let (speed, device) = measure_bayan(&bayan, &checkpoint.directory, training, recompute, further)?;
        println!("{:<12} {theirs:>10.2} {speed:>10.2} {:>8.3}", if recompute { "yes" } else { "no" }, speed / theirs);
        (peer, ours) = (version, device);
    }
    println!("{peer}; Bayan on {ours}");
    Ok(())
}

fn python(cache: &Path, given: Option<&Path>) -> Result<PathBuf> {
    let has =
        |program: &Path| process::succeeds(Command::new(program).args(["-c", "import torch, transformers, peft"]));
    if let Some(program) = given {
        if has(program) {
            return Ok(program.to_owned());
        }
        bail!(
            "--python {}: expected one that imports torch, transformers and peft; remedy: install them there, or leave the flag out",
            program.display()
        );
    }
    let venv = cache.join("peft");
    let program = venv.join("bin/python");
    if !has(&program) {
        eprintln!("Installing {} into {}", PACKAGES.join(", "), venv.display());
        fs::create_dir_all(cache).with_context(|| format!("{} could not be made", cache.display()))?;
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        process::run(Command::new(&program).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
    }
    Ok(program)
}

fn median(json: &Value) -> Result<f64> {
    let samples = json["samples"].as_array().map(|list| list.iter().filter_map(Value::as_f64).collect::<Vec<f64>>());
    let mut samples = samples
        .filter(|list| !list.is_empty())
        .with_context(|| format!("expected numbers in `samples`, got {json}"))?;
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}

fn measure_peft(
    python: &Path,
    cache: &Path,
    directory: &Path,
    training: &Training,
    recompute: bool,
) -> Result<(f64, String)> {
    let script = cache.join("bench_peft.py");
    fs::write(&script, include_str!("peft_step.py"))
        .with_context(|| format!("{} could not be written", script.display()))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new(python);
    command.arg(&script).arg(directory);
    for number in [training.tokens, training.rank, training.repetitions, threads, usize::from(recompute)] {
        command.arg(number.to_string());
    }
    let json = last_json(&process::capture(&mut command)?).context("PEFT printed no result")?;
    Ok((median(&json)?, json["version"].as_str().unwrap_or("unknown version").to_owned()))
}

fn measure_bayan(
    program: &Path,
    directory: &Path,
    training: &Training,
    recompute: bool,
    further: &[String],
) -> Result<(f64, String)> {
    let mut bench = Command::new(program);
    bench.args(["bench", "--train", "--json", "--quantize", "f32", "--model"]).arg(directory);
    for (flag, number) in
        [("--prompt", training.tokens), ("--rank", training.rank), ("--repetitions", training.repetitions)]
    {
        bench.arg(flag).arg(number.to_string());
    }
    if !recompute {
        bench.arg("--no-grad-checkpoint");
    }
    if let Some(directory) = process::runtime_dir(&workspace::target_dir()?) {
        bench.env("XDG_RUNTIME_DIR", directory);
    }
    let json =
        last_json(&process::capture(bench.args(further))?).context("`bayan bench --train --json` printed no JSON")?;
    let percent = json["percent_of_product"].as_f64().unwrap_or(f64::NAN);
    Ok((
        median(&json)?,
        format!("{}, {percent:.0} % of its own matrix product", json["device"].as_str().unwrap_or("unknown device")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_median_counts_and_nothing_is_an_error() {
        assert_eq!(median(&json!({"samples": [3.0, 1.0, 2.0]})).expect("numbers"), 2.0);
        assert!(median(&json!({"samples": []})).is_err());
    }

    #[test]
    fn a_python_without_the_packages_is_refused() {
        let error = python(Path::new("none"), Some(Path::new("no-such-python"))).expect_err("refused").to_string();
        assert!(error.contains("--python"), "{error}");
    }
}
