//! `cargo xtask peers`: Bayan and other runtimes in turn, on the same checkpoint and device.
//!
//! It is a comparison that anyone can rerun. Rejected: a timed test, because it would fail on a busy machine. A peer is
//! the released package that users install, not a build with our own flags.

mod checkpoint;
mod gguf;
pub mod llama_cpp;
mod training;
mod web;

use crate::{chat, process, vulkan, workspace};
use anyhow::{Context, Result, bail};
use clap::Args;
use llama_cpp::Backend;
use serde_json::Value;
use std::process::Command;

/// Arguments of `cargo xtask peers`.
#[derive(Args)]
pub struct PeersArguments {
    /// Only this shape: llama-110m or qwen2.5-0.5b.
    #[arg(long)]
    shape: Option<String>,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 128)]
    prompt: usize,
    /// Tokens to generate.
    #[arg(long, default_value_t = 32)]
    generate: usize,
    /// Timed runs of each program; the median is reported.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// The peer's index of the Vulkan device.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Compare in a browser instead: transformers.js, wllama and Bayan in the same Chromium.
    #[arg(long)]
    web: bool,
    /// With --web: only runtimes whose name contains this.
    #[arg(long, requires = "web")]
    only: Option<String>,
    /// With --web: this GGUF file instead, in the runtimes that read it.
    #[arg(long, requires = "web", value_name = "FILE")]
    gguf: Option<std::path::PathBuf>,
    /// Measure the peers only.
    #[arg(long)]
    without_bayan: bool,
    /// Compare a LoRA training step with PEFT's on PyTorch's CPU backend instead, over one sequence of 256 tokens.
    #[arg(long)]
    train: bool,
    /// With --train: a Python with torch, transformers and peft; otherwise they are installed from PyPI.
    #[arg(long, requires = "train")]
    python: Option<std::path::PathBuf>,
    /// Further arguments of `bayan bench`, e.g. `-- --device 1`.
    #[arg(last = true)]
    bench_arguments: Vec<String>,
}

/// The workload of every program.
pub struct Workload {
    prompt: usize,
    generate: usize,
    repetitions: usize,
    device: usize,
}

/// Tokens per second, for prompt and generation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    prefill: f64,
    decode: f64,
}

/// One row of the table.
struct Row {
    program: &'static str,
    backend: Backend,
    speed: Speed,
    details: String,
}

/// Prepares the checkpoints, measures, and prints one table for each shape.
pub fn run(arguments: &PeersArguments) -> Result<()> {
    let shapes = chosen(arguments.shape.as_deref())?;
    for (name, number) in
        [("--prompt", arguments.prompt), ("--generate", arguments.generate), ("--repetitions", arguments.repetitions)]
    {
        if number == 0 || number > 1024 {
            bail!("{name}: expected 1 to 1024, got {number}");
        }
    }
    if arguments.web {
        let gguf = arguments.gguf.as_deref();
        return web::run(arguments.prompt, arguments.generate, arguments.only.as_deref(), gguf);
    }
    if arguments.train {
        let shape = if arguments.shape.is_some() { shapes[0] } else { &checkpoint::SHAPES[0] };
        let training = training::Training {
            tokens: 256,
            rank: 16,
            repetitions: arguments.repetitions,
            python: arguments.python.clone(),
        };
        return training::run(&training, shape, &arguments.bench_arguments);
    }
    vulkan::set_up()?;
    let cache = workspace::target_dir()?.join("peers");
    let peer = llama_cpp::install(&cache)?;
    let bayan = if arguments.without_bayan { None } else { Some(chat::build_bayan()?) };
    let workload = Workload {
        prompt: arguments.prompt,
        generate: arguments.generate,
        repetitions: arguments.repetitions,
        device: arguments.device,
    };
    for shape in shapes {
        let checkpoint = checkpoint::ensure(shape, &cache)?;
        let mut rows = Vec::new();
        for (program, backend) in [("llama.cpp, Vulkan", Backend::Vulkan), ("llama.cpp, CPU", Backend::Cpu)] {
            eprintln!("Measuring {program} on {}", shape.name);
            let (speed, details) = peer.measure(&checkpoint, &workload, backend)?;
            rows.push(Row { program, backend, speed, details });
        }
        if let Some(bayan) = &bayan {
            for (program, backend) in [("Bayan, Vulkan", Backend::Vulkan), ("Bayan, CPU", Backend::Cpu)] {
                eprintln!("Measuring {program} on {}", shape.name);
                let further = &arguments.bench_arguments;
                let (speed, details) = measure_bayan(bayan, &checkpoint, &workload, backend, further)?;
                rows.push(Row { program, backend, speed, details });
            }
        }
        print(shape.name, &workload, &rows);
    }
    Ok(())
}

fn chosen(name: Option<&str>) -> Result<Vec<&'static checkpoint::Shape>> {
    let found: Vec<_> = checkpoint::SHAPES.iter().filter(|shape| name.is_none_or(|name| name == shape.name)).collect();
    if found.is_empty() {
        let names: Vec<&str> = checkpoint::SHAPES.iter().map(|shape| shape.name).collect();
        bail!("--shape: expected one of {}, got {}", names.join(", "), name.unwrap_or_default());
    }
    Ok(found)
}

fn measure_bayan(
    program: &std::path::Path,
    checkpoint: &checkpoint::Checkpoint,
    workload: &Workload,
    backend: Backend,
    further: &[String],
) -> Result<(Speed, String)> {
    let mut bench = Command::new(program);
    bench.arg("bench").arg("--model").arg(&checkpoint.directory).args(["--quantize", "q4_0", "--json"]);
    for (flag, number) in [
        ("--prompt", workload.prompt),
        ("--generate", workload.generate),
        ("--repetitions", workload.repetitions),
        ("--depth", 0),
    ] {
        bench.arg(flag).arg(number.to_string());
    }
    if let Some(directory) = process::runtime_dir(&workspace::target_dir()?) {
        bench.env("XDG_RUNTIME_DIR", directory);
    }
    // Further arguments are for the GPU, which they may select.
    match backend {
        Backend::Cpu => bench.args(["--device", "cpu"]),
        Backend::Vulkan if further.iter().any(|argument| argument.starts_with("--device")) => bench.args(further),
        Backend::Vulkan => bench.arg("--device").arg(workload.device.to_string()).args(further),
    };
    let json = last_json(&process::capture(&mut bench)?).context("`bayan bench --json` printed no JSON")?;
    read_bench(&json)
}

/// The last line, or the whole text, that is a JSON object.
pub fn last_json(text: &str) -> Option<Value> {
    let object = |text: &str| serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
    object(text).or_else(|| text.lines().rev().find_map(object))
}

/// Reads the medians from the output of `bayan bench --json`, as for the peers.
fn read_bench(json: &Value) -> Result<(Speed, String)> {
    let median = |test: &str| {
        let samples =
            json[test]["samples"].as_array().map(|list| list.iter().filter_map(Value::as_f64).collect::<Vec<f64>>());
        let mut samples = samples
            .filter(|list| !list.is_empty())
            .with_context(|| format!("expected numbers in {test}.samples of `bayan bench --json`, got {json}"))?;
        samples.sort_by(f64::total_cmp);
        anyhow::Ok(samples[samples.len() / 2])
    };
    let device = json["device"].as_str().unwrap_or("unknown device");
    let path = json["path"].as_str().map_or_else(String::new, |path| format!(", {path}"));
    Ok((Speed { prefill: median("prompt")?, decode: median("generate")? }, format!("{device}{path}")))
}

fn print(shape: &str, workload: &Workload, rows: &[Row]) {
    println!(
        "\n{shape}, 4-bit weights, {} tokens of prompt, {} generated, tokens per second",
        workload.prompt, workload.generate
    );
    println!("{:<20} {:>10} {:>10} {:>10} {:>10}   device", "", "prefill", "decode", "prefill ×", "decode ×");
    for row in rows {
        // llama.cpp with the same backend comes first.
        let base = rows.iter().find(|other| other.backend == row.backend).map(|other| other.speed);
        let ratio = |value: f64, base: Option<f64>| {
            base.filter(|base| *base > 0.0).map_or_else(|| "–".to_owned(), |base| format!("{:.2}", value / base))
        };
        println!(
            "{:<20} {:>10.2} {:>10.2} {:>10} {:>10}   {}",
            row.program,
            row.speed.prefill,
            row.speed.decode,
            ratio(row.speed.prefill, base.map(|speed| speed.prefill)),
            ratio(row.speed.decode, base.map(|speed| speed.decode)),
            row.details
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_found_among_other_lines() {
        let text = "loading\n{\"prompt\":{\"samples\":[3.0,2.5,1.0]},\"generate\":{\"samples\":[1.5]},\"device\":\"soft\",\"path\":\"plain\"}\n";
        let (speed, device) = read_bench(&last_json(text).expect("JSON")).expect("figures");
        assert_eq!((speed, device.as_str()), (Speed { prefill: 2.5, decode: 1.5 }, "soft, plain"));
        assert!(read_bench(&json!({"prompt": {}})).is_err());
        assert!(last_json("nothing").is_none());
    }

    #[test]
    fn unknown_shapes_are_refused() {
        assert!(chosen(Some("none")).is_err());
        assert_eq!(chosen(None).expect("all").len(), checkpoint::SHAPES.len());
    }
}
