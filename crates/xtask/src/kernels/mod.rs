//! `cargo xtask kernels`: what compilers for GPUs make of the kernels of real models, without a GPU, and a roofline.
//!
//! A program that is not part of the repository (the laboratory) offers drivers whose compilers work without hardware.
//! It is called as `LAB kernels FAMILY PROGRAM ARGUMENTS…`, runs `bayan bench --compile-only` on a driver for that family
//! of GPUs, and leaves what the program prints in `$GPU_LAB_OUT/program.out`. Without it, `--here` asks the driver of
//! this machine. A spill, an occupancy below the kernel's floor, or a kernel that does not compile is an error.

mod devices;
mod floors;
mod model;

use crate::{chat, process};
use anyhow::{Context, Result, bail};
use clap::Args;
use devices::DEVICES;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Arguments of `cargo xtask kernels`.
#[derive(Args)]
pub struct KernelsArguments {
    /// The laboratory's program.
    #[arg(long, env = "BAYAN_GPU_LAB", value_name = "PROGRAM")]
    lab: Option<PathBuf>,
    /// Ask the driver of this machine instead.
    #[arg(long, conflicts_with = "lab")]
    here: bool,
    /// Families of GPUs, as the laboratory names them.
    #[arg(long, value_delimiter = ',', default_value = "navi21,navi31,gfx1201")]
    family: Vec<String>,
    /// Shapes, as `bayan bench --model random:SHAPE` names them.
    #[arg(long, value_delimiter = ',', default_value = "llama-110m,llama3.2-1b,llama3-8b")]
    shape: Vec<String>,
    /// Weight formats.
    #[arg(long, value_delimiter = ',', default_value = "q4_0,q4_k,q8_0,f16")]
    format: Vec<String>,
    /// Workloads: one (a prompt, and a token early, after 4096 and after 32768 positions), several (8 and 32
    /// sequences), train.
    #[arg(long, value_delimiter = ',', default_value = "one,several,train")]
    workload: Vec<String>,
    /// A built `bayan`; otherwise the release program is built.
    #[arg(long, value_name = "PROGRAM")]
    bayan: Option<PathBuf>,
    /// Write all reports to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep SPIR-V and machine code in this directory.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// The arguments of `bayan bench` for a workload.
fn workload(name: &str) -> Result<Vec<Vec<&'static str>>> {
    Ok(match name {
        // One run for each depth: a run's cache, which counts as read, is as long as its deepest.
        "one" => vec![
            vec!["--prompt", "512", "--generate", "16", "--depth", "0"],
            vec!["--prompt", "0", "--generate", "16", "--depth", "4096"],
            vec!["--prompt", "0", "--generate", "16", "--depth", "32768"],
        ],
        "several" => vec![
            vec!["--prompt", "0", "--generate", "16", "--depth", "512", "--parallel", "8"],
            vec!["--prompt", "0", "--generate", "16", "--depth", "512", "--parallel", "32"],
        ],
        "train" => vec![vec!["--train", "--f16", "--prompt", "512"]],
        other => bail!("--workload {other}: expected one, several or train"),
    })
}

/// Compiles, prints a table for each workload, and fails on spills and low occupancy.
pub fn run(arguments: &KernelsArguments) -> Result<ExitCode> {
    let workloads: Vec<_> = arguments.workload.iter().map(|name| Ok((name, workload(name)?))).collect::<Result<_>>()?;
    if arguments.lab.is_none() && !arguments.here {
        bail!(
            "cargo xtask kernels needs a driver: name the laboratory's program with --lab or BAYAN_GPU_LAB, or ask the \
             driver of this machine with --here"
        );
    }
    let bayan = match &arguments.bayan {
        Some(program) => program.canonicalize().with_context(|| format!("--bayan {}", program.display()))?,
        None => chat::build_bayan()?,
    };
    let families = if arguments.here { vec!["here".to_string()] } else { arguments.family.clone() };
    let (mut reports, mut faults) = (Vec::new(), Vec::new());
    for family in &families {
        for (shape, format) in arguments.shape.iter().flat_map(|s| arguments.format.iter().map(move |f| (s, f))) {
            for (name, lists) in &workloads {
                for list in lists {
                    // Training takes the formats of bases.
                    let what = format!("{family}, {shape} {format}, {name} {}", list.join(" "));
                    let folder = scratch(&what)?;
                    let result = compile(arguments, &bayan, family, shape, format, list, &folder);
                    let report = result.with_context(|| what.clone())?;
                    print!("{}", tables(&what, &report, &folder));
                    let found = spills(&report).into_iter().chain(floors::below(kernels(&report)));
                    faults.extend(found.map(|kernel| format!("{what}: {kernel}")));
                    reports.push(json!({"family": family, "shape": shape, "format": format, "report": report}));
                    keep(arguments.keep.as_deref(), &folder)?;
                }
            }
        }
    }
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&reports)?;
        std::fs::write(file, text).with_context(|| format!("--json {}", file.display()))?;
    }
    if faults.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("error: {} kernels spill registers or have a low occupancy:\n{}", faults.len(), faults.join("\n"));
    Ok(ExitCode::FAILURE)
}

/// The laboratory, if this machine names one.
pub fn laboratory() -> Option<PathBuf> {
    std::env::var_os("BAYAN_GPU_LAB").filter(|lab| !lab.is_empty()).map(PathBuf::from)
}

/// Checks the kernels of a model of 8 billion parameters on the laboratory's default families.
pub fn check(lab: PathBuf, bayan: PathBuf) -> Result<()> {
    #[derive(clap::Parser)]
    struct Parsed {
        #[command(flatten)]
        arguments: KernelsArguments,
    }
    let list = ["kernels", "--shape", "llama3-8b", "--format", "q4_k,q8_0"];
    let Parsed { arguments } = clap::Parser::try_parse_from(list)?;
    let arguments = KernelsArguments { lab: Some(lab), bayan: Some(bayan), ..arguments };
    match run(&arguments)? == ExitCode::SUCCESS {
        true => Ok(()),
        false => bail!("kernels for GPUs have the faults above"),
    }
}

/// An empty directory for what one run leaves.
fn scratch(what: &str) -> Result<PathBuf> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = what.chars().map(plain).collect();
    let folder = std::env::temp_dir().join(format!("bayan-kernels-{}", std::process::id())).join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(folder.join("code"))?;
    Ok(folder)
}

/// Runs `bayan bench --compile-only` and returns its report.
fn compile(
    arguments: &KernelsArguments,
    bayan: &Path,
    family: &str,
    shape: &str,
    format: &str,
    list: &[&str],
    folder: &Path,
) -> Result<Value> {
    let mut command = match &arguments.lab {
        Some(lab) => {
            let mut command = Command::new(lab);
            command.args(["kernels", family]).arg(bayan).env("GPU_LAB_OUT", folder);
            command
        }
        None => Command::new(bayan),
    };
    command.args(["bench", "--compile-only", "--json", "--autotune", "off", "--keep"]).arg(folder.join("code"));
    command.args(["--model", &format!("random:{shape}"), "--quantize", format]).args(list);
    let printed = process::capture(&mut command)?;
    let output = match arguments.lab {
        Some(_) => {
            let file = folder.join("program.out");
            std::fs::read_to_string(&file).with_context(|| format!("{printed}\n{}", file.display()))?
        }
        None => printed,
    };
    parse(&output)
}

/// The report among the lines that the program printed.
fn parse(output: &str) -> Result<Value> {
    let start = match output.starts_with('{') {
        true => Some(0),
        false => output.find("\n{").map(|at| at + 1),
    };
    let tail = || {
        let lines: Vec<&str> = output.lines().rev().take(12).collect();
        format!("expected a report of the kernels, got:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
    };
    let text = &output[start.with_context(tail)?..];
    let first = serde_json::Deserializer::from_str(text).into_iter::<Value>().next();
    let report = first.with_context(tail)?.with_context(tail)?;
    if kernels(&report).next().is_none() {
        bail!("expected at least one kernel in the report, got none");
    }
    Ok(report)
}

fn steps(report: &Value) -> impl Iterator<Item = &Value> {
    report["steps"].as_array().into_iter().flatten()
}

fn kernels(report: &Value) -> impl Iterator<Item = &Value> {
    steps(report).flat_map(|step| step["kernels"].as_array().into_iter().flatten())
}

/// The kernels with registers in memory.
fn spills(report: &Value) -> Vec<String> {
    let spilled = |kernel: &&Value| {
        ["spilled", "scratch_bytes"].iter().any(|name| kernel[*name].as_f64().is_some_and(|count| count > 0.0))
    };
    let describe = |kernel: &Value| {
        let spilled = [&kernel["spilled"], &kernel["scratch_bytes"]].map(show);
        format!("{}: {} registers spilled, {} bytes", show(&kernel["kernel"]), spilled[0], spilled[1])
    };
    let mut found: Vec<String> = kernels(report).filter(spilled).map(describe).collect();
    found.sort();
    found.dedup();
    found
}

/// A kernel of the report, as the model sees it.
fn modelled(kernel: &Value, folder: &Path) -> model::Kernel {
    let number = |name: &str| kernel[name].as_f64().unwrap_or(0.0);
    let kept = kernel["kept"].as_str().unwrap_or("");
    let file = |end: &str| std::fs::read(folder.join("code").join(format!("{kept}.{end}"))).unwrap_or_default();
    let workgroups = kernel["workgroups"].as_array().into_iter().flatten().filter_map(Value::as_f64).product();
    let name = kernel["kernel"].as_str().unwrap_or("");
    // A look-up binds the whole table, and reads a row for each token.
    let bytes = if name.starts_with("embed") { 8.0 * number("multiply_adds") } else { number("bytes") };
    model::Kernel {
        bytes,
        multiply_adds: number("multiply_adds"),
        workgroups,
        invocations: model::invocations(&file("spv")).unwrap_or(1) as f64,
        loads: model::loads_in_flight(&String::from_utf8_lossy(&file("s"))) as f64,
        unit: model::unit(name, kernel["matrix_instructions"].as_u64().unwrap_or(0)),
    }
}

/// A table of each step: the compiler's figures and, for each device, the least time and the expected share.
fn tables(what: &str, report: &Value, folder: &Path) -> String {
    let mut text = format!("\n## {what}\n\n{} ({})\n", show(&report["device"]), show(&report["path"]));
    for step in steps(report) {
        let _ = writeln!(text, "\n{}, {} tokens, {} positions\n", show(&step["step"]), step["tokens"], step["cached"]);
        let devices: Vec<&str> = DEVICES.iter().map(|device| device.name).collect();
        let figures = "| kernel | count | lanes | registers | spilled | LDS | occupancy | instr. | matrix | loads";
        let _ = writeln!(text, "{figures} | {} |", devices.join(" | "));
        let _ = writeln!(text, "|{}", " --- |".repeat(10 + devices.len()));
        let (mut least, mut expected) = (vec![0.0; DEVICES.len()], vec![0.0; DEVICES.len()]);
        for kernel in step["kernels"].as_array().into_iter().flatten() {
            let known = modelled(kernel, folder);
            let names = [
                "kernel",
                "dispatches",
                "subgroup_size",
                "registers",
                "spilled",
                "workgroup_bytes",
                "occupancy",
                "instructions",
                "matrix_instructions",
            ];
            let mut cells: Vec<String> = names.iter().map(|name| show(&kernel[*name])).collect();
            cells.push(format!("{}", known.loads));
            let count = kernel["dispatches"].as_f64().unwrap_or(1.0);
            for (number, device) in DEVICES.iter().enumerate() {
                let Some(estimate) = known.on(device) else {
                    least[number] = f64::NAN;
                    cells.push("-".into());
                    continue;
                };
                least[number] += count * estimate.least_us;
                expected[number] += count * estimate.least_us / estimate.share.max(1e-6);
                let limit = if estimate.memory_bound { "m" } else { "a" };
                cells.push(format!("{:.1} {limit} {:.0}", count * estimate.least_us, 100.0 * estimate.share));
            }
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        let total = |(least, all): (&f64, &f64)| match least.is_nan() {
            true => "-".into(),
            false => format!("{least:.0} of {all:.0}"),
        };
        let totals = least.iter().zip(&expected).map(total);
        let _ = writeln!(text, "| all{} | {} |", " |".repeat(9), totals.collect::<Vec<_>>().join(" | "));
    }
    text.push_str(
        "\nUnder a device: the least time of all dispatches in µs, what limits it (m memory, a arithmetic), and the \
         expected share of that limit in %; last, the sum of least times, of expected times. A device that lacks the \
         units of a kernel would run another one, and has no figure.\n",
    );
    text
}

/// A value without the quotes of a string; `-` for what the driver does not say.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Number(number) => format!("{:.0}", number.as_f64().unwrap_or(0.0)),
        other => other.to_string(),
    }
}

/// Moves the code of one run to where the user wants it, or deletes it.
fn keep(wanted: Option<&Path>, folder: &Path) -> Result<()> {
    if let Some(wanted) = wanted {
        let target = wanted.join(folder.file_name().unwrap_or_default());
        std::fs::create_dir_all(&target).with_context(|| format!("--keep {}", target.display()))?;
        for entry in std::fs::read_dir(folder.join("code"))? {
            let entry = entry?;
            std::fs::copy(entry.path(), target.join(entry.file_name()))?;
        }
    }
    std::fs::remove_dir_all(folder).with_context(|| format!("{} could not be removed", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Value {
        json!({"device": "d", "path": "f16", "steps": [{"step": "s", "tokens": 1, "cached": 2, "kernels": [
            {"kernel": "a", "dispatches": 2, "spilled": 0.0, "scratch_bytes": 0.0, "workgroups": [2, 3, 1], "bytes": 1e6},
            {"kernel": "b", "dispatches": 1, "spilled": 3.0, "scratch_bytes": 64.0},
            {"kernel": "c", "dispatches": 1, "spilled": null},
        ]}]})
    }

    #[test]
    fn a_report_is_found_among_other_lines() {
        let text = format!("note: {{}}\n{}\nkept\n", serde_json::to_string_pretty(&report()).expect("JSON"));
        assert_eq!(parse(&text).expect("a report"), report());
        for text in ["", "error: no such kernel\n", "{\"steps\": []}", "{\"steps\": [", "\n{"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(format!("{:#}", parse("error: it spills\n").unwrap_err()).contains("it spills"));
    }

    #[test]
    fn spills_are_named() {
        assert_eq!(spills(&report()), ["b: 3 registers spilled, 64 bytes"]);
    }

    #[test]
    fn tables_have_a_cell_for_every_device() {
        let text = tables("x", &report(), Path::new("/nowhere"));
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(rows.len(), 6, "{text}");
        assert!(rows.iter().all(|row| row.matches('|').count() == 11 + DEVICES.len()), "{text}");
        assert_eq!(modelled(&report()["steps"][0]["kernels"][0], Path::new("/nowhere")).workgroups, 6.0);
    }

    #[test]
    fn unknown_workloads_are_refused() {
        assert!(workload("decode").unwrap_err().to_string().contains("one, several or train"));
        assert_eq!(workload("several").expect("known").len(), 2);
    }
}
