//! `bayan ops`: runs the op suite on this device and prints the error of each kernel against its reference.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bayan_generate::Cpu;
use bayan_gpu::block_on;
use bayan_tensor::suite::{self, Case, CaseResult};
use clap::Args;
use serde_json::json;

use super::compiled::{self, CompileArgs, Step};
use crate::support::device::{self, Device};
use crate::support::options::DeviceArgs;
use crate::support::output::{self, Progress};

/// Flags of `bayan ops`.
#[derive(Debug, Args)]
pub struct OpsArgs {
    /// Only cases whose name contains this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Seed of the random inputs
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compile: CompileArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// The cases that the flags select.
fn wanted(args: &OpsArgs) -> Result<Vec<Case>> {
    let mut wanted = suite::cases();
    wanted.retain(|case| args.filter.as_ref().is_none_or(|text| case.name.contains(text.as_str())));
    if wanted.is_empty() {
        bail!(
            "no test case has `{}` in its name; run without --filter to see all names",
            args.filter.as_deref().unwrap_or("")
        );
    }
    Ok(wanted)
}

/// Compiles the kernels of the cases, and prints what the driver makes of them.
fn compile(args: &OpsArgs) -> Result<ExitCode> {
    let flags = DeviceArgs { purpose: args.compile.purpose(), ..args.device.clone() };
    if device::is_cpu(&flags) {
        bail!(
            "--compile-only: expected a GPU or a software device of `bayan devices`, got the CPU, which compiles nothing"
        );
    }
    let gpu = device::gpu(&flags)?;
    let wanted = wanted(args)?;
    let mut progress = Progress::new("cases", false);
    for (index, case) in wanted.iter().enumerate() {
        suite::compile(&gpu, case).with_context(|| format!("test case `{}`", case.name))?;
        progress.set(index as u64 + 1, wanted.len() as u64);
    }
    drop(progress);
    let step = Step::of_kernels("op suite", gpu.compiled_kernels());
    compiled::report(&args.compile, args.json, &gpu, json!({}), &[step])
}

/// Runs the cases. The exit code is 1 if one fails.
///
/// # Errors
/// The device fails, or no case matches.
pub fn run(args: &OpsArgs) -> Result<ExitCode> {
    if args.compile.compile_only {
        return compile(args);
    }
    let device = device::open(&args.device)?;
    let cpus: Vec<Cpu> = if let Device::Cpu(cpu) = &device { vec![cpu.clone()] } else { Vec::new() };
    let wanted = wanted(args)?;
    let mut progress = Progress::new("cases", false);
    let mut results: Vec<(CaseResult, Option<String>)> = Vec::new();
    for (index, case) in wanted.iter().enumerate() {
        let failed =
            |reason| (CaseResult { name: case.name.clone(), nmse: f64::INFINITY, bound: case.bound }, Some(reason));
        let ran = match &device {
            Device::Gpu(gpu) => block_on(suite::run(gpu, case, args.seed)),
            Device::Cpu(_) => suite::run_on_cpu(&cpus, case, args.seed),
        };
        let result = match ran {
            Ok(result) => (result, None),
            Err(error @ bayan_gpu::GpuError::DeviceLost(_)) => return Err(error.into()),
            Err(error) => failed(error.to_string()),
        };
        results.push(result);
        progress.set(index as u64 + 1, wanted.len() as u64);
    }
    drop(progress);
    let failed = results.iter().filter(|(result, _)| !result.passed()).count();
    if args.json {
        let rows: Vec<_> = results
            .iter()
            // JSON has no infinity: a case that could not run has no NMSE.
            .map(|(o, error)| json!({"name": o.name, "nmse": o.nmse.is_finite().then_some(o.nmse), "bound": o.bound, "passed": o.passed(), "error": error}))
            .collect();
        let c = device.capabilities();
        output::json(
            &json!({"device": c.name, "driver": c.driver, "path": c.path(), "cases": rows, "failed": failed}),
        )?;
    } else {
        let rows: Vec<Vec<String>> = results
            .iter()
            .map(|(o, _)| {
                let verdict = if o.passed() { "ok" } else { "FAIL" };
                vec![o.name.clone(), format!("{:.1e}", o.nmse), format!("{:.0e}", o.bound), verdict.into()]
            })
            .collect();
        output::line(&output::table(&["case", "NMSE", "bound", ""], &rows))?;
        for (result, error) in &results {
            if let Some(error) = error {
                output::line(&format!("{}: {error}", result.name))?;
            }
        }
        output::line(&format!(
            "{}: {} of {} cases pass",
            device.capabilities().path(),
            results.len() - failed,
            results.len()
        ))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
