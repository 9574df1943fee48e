//! `cargo xtask peers --web`: Bayan and the common browser runtimes in the same Chromium on the same checkpoint.
//!
//! Each runs in its own browser, controlled through its public interface by `web/measure.mjs`, after a warm-up with a
//! prompt of the same length. The peers are the released npm packages; pages get the headers that enable threads, which
//! Bayan does not need. CPU seconds are those of the browser's processes: with a software GPU only they distinguish
//! waiting from computing.

use super::checkpoint::{self, Checkpoint};
use super::llama_cpp::installed_version;
use crate::{process, tools, wasm, workspace};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compared releases. After an update by hand, measure again.
const PACKAGES: &[(&str, &str)] = &[("@huggingface/transformers", "4.3.1"), ("@wllama/wllama", "3.8.1")];

/// Name in `web/page.mjs`, and in the table.
const RUNTIMES: &[(&str, &str)] = &[
    ("transformers-webgpu", "transformers.js, WebGPU"),
    ("transformers-wasm", "transformers.js, WASM"),
    ("wllama-wasm", "wllama, WASM"),
    ("bayan", "Bayan, WebGPU"),
    ("bayan-wasm", "Bayan, WASM"),
];

/// Those that read a GGUF file.
const GGUF: &[&str] = &["wllama-wasm", "bayan-wasm"];

/// Seconds after which a peer's decoding is stopped: the speed over fewer tokens is as accurate, and hours are saved.
const LIMIT_SECONDS: u32 = 90;

/// Prepares, measures and prints the table. `only`: a part of a runtime's name; `gguf`: a file instead of the checkpoint.
pub fn run(prompt: usize, generate: usize, only: Option<&str>, gguf: Option<&Path>) -> Result<()> {
    let wanted = |key: &&str| only.is_none_or(|part| key.contains(part)) && (gguf.is_none() || GGUF.contains(key));
    let chosen: Vec<&str> = RUNTIMES.iter().map(|(key, _)| *key).filter(wanted).collect();
    if chosen.is_empty() {
        bail!(
            "--only: expected a part of one of {}",
            RUNTIMES.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(", ")
        );
    }
    let cache = workspace::target_dir()?.join("peers");
    let packages = install(&cache)?;
    let shape = checkpoint::SHAPES
        .iter()
        .find(|shape| shape.name == "llama-110m")
        .context("the shape llama-110m is not in the table")?;
    let mut checkpoint = checkpoint::ensure(shape, &cache)?;
    if let Some(gguf) = gguf {
        checkpoint.gguf = gguf.canonicalize().with_context(|| format!("--gguf {}: expected a file", gguf.display()))?;
    }
    let node = tools::node()?;
    tools::web_modules(node.as_deref())?;
    let options = options(&packages, &checkpoint, prompt, generate, &chosen)?;
    let mut measure = tools::in_web("node", node.as_deref())?;
    measure.arg(workspace::root().join("crates/xtask/src/peers/web/measure.mjs")).arg(options.to_string());
    let output = process::capture(&mut measure)?;
    let name = gguf.and_then(Path::file_name).map_or("llama-110m, 4-bit weights".into(), |name| name.to_string_lossy());
    print(&output, &name, prompt, generate)
}

fn install(cache: &Path) -> Result<PathBuf> {
    let directory = cache.join("web");
    std::fs::create_dir_all(&directory).with_context(|| format!("{} could not be made", directory.display()))?;
    if PACKAGES.iter().all(|(name, version)| installed_version(&directory, name).as_deref() == Some(version)) {
        return Ok(directory);
    }
    eprintln!("Installing transformers.js and wllama into {}", directory.display());
    let mut npm = Command::new("npm");
    npm.args(["install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"]).arg(&directory);
    process::run(npm.args(PACKAGES.iter().map(|(name, version)| format!("{name}@{version}"))))?;
    Ok(directory)
}

fn options(packages: &Path, checkpoint: &Checkpoint, prompt: usize, generate: usize, only: &[&str]) -> Result<Value> {
    Ok(json!({
        "web": workspace::root().join("web"),
        "packages": packages,
        "checkpoint": checkpoint.directory,
        "gguf": checkpoint.gguf,
        "engine": wasm::build()?,
        "tests": workspace::root().join("crates/wasm/tests/browser"),
        "chromium": tools::chromium()?,
        "prompt": prompt,
        "generate": generate,
        "limitSeconds": LIMIT_SECONDS,
        "only": only,
    }))
}

/// The speed of one runtime, per second.
#[derive(Debug, PartialEq)]
struct Line {
    load_seconds: f64,
    prefill: f64,
    prefill_cpu: f64,
    decode: f64,
    decode_cpu: f64,
}

fn line(result: &Value) -> Option<Line> {
    let number = |name: &str| result[name].as_f64();
    let rate = |count: &str, seconds: f64| number(count).map(|count| if seconds > 0.0 { count / seconds } else { 0.0 });
    Some(Line {
        load_seconds: number("loadMs")? / 1e3,
        prefill: rate("promptTokens", number("prefillMs")? / 1e3)?,
        prefill_cpu: rate("promptTokens", number("prefillCpuSeconds")?)?,
        decode: rate("tokens", number("decodeMs")? / 1e3)?,
        decode_cpu: rate("tokens", number("decodeCpuSeconds")?)?,
    })
}

fn print(output: &str, name: &str, prompt: usize, generate: usize) -> Result<()> {
    let results: Vec<Value> = output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    println!("\n{name}, Chromium on SwiftShader, {prompt} tokens of prompt, {generate} generated");
    println!(
        "{:<26} {:>8} {:>10} {:>10} {:>10} {:>10}   notes",
        "", "load s", "prefill/s", "per CPU s", "decode/s", "per CPU s"
    );
    let mut lines = Vec::new();
    for result in &results {
        let key = result["runtime"].as_str().unwrap_or_default();
        let name = RUNTIMES.iter().find(|runtime| runtime.0 == key).map_or(key, |runtime| runtime.1);
        match (result["error"].as_str(), line(result)) {
            (None, Some(line)) => {
                let notes =
                    format!("{}, {} tokens decoded", result["note"].as_str().unwrap_or_default(), result["tokens"]);
                println!(
                    "{name:<26} {:>8.1} {:>10.2} {:>10.2} {:>10.2} {:>10.2}   {notes}",
                    line.load_seconds, line.prefill, line.prefill_cpu, line.decode, line.decode_cpu
                );
                lines.push((key, line));
            }
            (error, _) => println!("{name:<26} failed: {}", error.unwrap_or("no figures")),
        }
    }
    let of = |key: &str| lines.iter().find(|(known, _)| *known == key).map(|(_, line)| line);
    if let (Some(own), Some(peer)) = (of("bayan"), of("transformers-webgpu")) {
        println!(
            "Bayan against transformers.js on WebGPU: prefill {:.1}×, decode {:.1}×",
            own.prefill / peer.prefill,
            own.decode / peer.decode
        );
    }
    if let (Some(own), Some(peer)) = (of("bayan-wasm"), of("wllama-wasm")) {
        println!(
            "Bayan against wllama, both on the CPU, per CPU second: prefill {:.1}×, decode {:.1}×",
            own.prefill_cpu / peer.prefill_cpu,
            own.decode_cpu / peer.decode_cpu
        );
    }
    if lines.len() < results.len() || results.is_empty() {
        bail!("a runtime gave no figures; see the table");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_what_is_reported() {
        let result = json!({"loadMs": 2000.0, "promptTokens": 128, "prefillMs": 64000.0, "prefillCpuSeconds": 32.0, "tokens": 4, "decodeMs": 8000.0, "decodeCpuSeconds": 0.0});
        assert_eq!(
            line(&result),
            Some(Line { load_seconds: 2.0, prefill: 2.0, prefill_cpu: 4.0, decode: 0.5, decode_cpu: 0.0 })
        );
        assert_eq!(line(&json!({"error": "x"})), None);
        assert!(print("", "a model", 1, 1).is_err());
    }
}
