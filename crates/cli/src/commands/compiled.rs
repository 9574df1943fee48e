//! `--compile-only` of `bayan bench` and `bayan ops`: what the driver makes of the kernels, without running any.
//!
//! It needs a Vulkan driver with `VK_KHR_pipeline_executable_properties` (Mesa's and NVIDIA's have it), but no memory:
//! buffers are not allocated, so that the kernels of any model are compiled on any device, also on a driver that only
//! pretends to have one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bayan_gpu::{Executable, Figure, Gpu, Kernel, Purpose};
use bayan_tensor::PlannedKernel;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::support::output;

/// The flags.
#[derive(Debug, Clone, Args)]
pub struct CompileArgs {
    /// Compile all kernels without running any, and print what the driver says of them: registers, spills, occupancy
    #[arg(long)]
    pub compile_only: bool,
    /// With --compile-only: keep SPIR-V and machine code of each kernel in this directory
    #[arg(long, value_name = "DIR", requires = "compile_only")]
    pub keep: Option<PathBuf>,
}

impl CompileArgs {
    /// What the device is opened for.
    pub fn purpose(&self) -> Purpose {
        if self.compile_only { Purpose::Compile } else { Purpose::Run }
    }
}

/// The kernels of one step.
pub struct Step {
    /// What the step does.
    pub name: String,
    /// Its tokens.
    pub tokens: usize,
    /// Positions in the cache of its longest sequence.
    pub cached: usize,
    /// Its dispatches.
    pub kernels: Vec<PlannedKernel>,
}

impl Step {
    /// Kernels that belong to no step, and of which only the compiler's report is known.
    pub fn of_kernels(name: &str, kernels: Vec<Kernel>) -> Step {
        let planned = |kernel: Kernel| PlannedKernel {
            name: kernel.name().to_string(),
            kernel,
            grid: [0; 3],
            bound_bytes: 0,
            multiply_adds: 0,
        };
        Step { name: name.into(), tokens: 0, cached: 0, kernels: kernels.into_iter().map(planned).collect() }
    }
}

/// Equal dispatches of a step.
struct Group {
    kernel: PlannedKernel,
    dispatches: usize,
}

/// The step's dispatches, equal ones counted.
fn groups(step: &Step) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for kernel in &step.kernels {
        let key = |kernel: &PlannedKernel| (kernel.name.clone(), kernel.grid, kernel.multiply_adds);
        match groups.iter_mut().find(|group| key(&group.kernel) == key(kernel)) {
            Some(group) => group.dispatches += 1,
            None => groups.push(Group { kernel: kernel.clone(), dispatches: 1 }),
        }
    }
    groups
}

/// The main program of a kernel.
fn executable(kernel: &Kernel) -> Option<&Executable> {
    kernel.report()?.executables.first()
}

fn figures(executable: &Executable) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("subgroup_size".into(), executable.subgroup_size.into());
    for figure in Figure::ALL {
        fields.insert(figure.name().into(), executable.figure(figure).into());
    }
    fields.insert("matrix_instructions".into(), executable.matrix_instructions().into());
    let statistics = executable.statistics.iter().map(|one| (one.name.clone(), Value::from(one.value)));
    fields.insert("statistics".into(), statistics.collect::<Map<_, _>>().into());
    fields
}

fn as_json(step: &Step, keep: Option<&Path>) -> Result<Value> {
    let mut kernels = Vec::new();
    for group in groups(step) {
        let mut fields = Map::new();
        fields.insert("kernel".into(), group.kernel.name.clone().into());
        fields.insert("dispatches".into(), group.dispatches.into());
        fields.insert("workgroups".into(), json!(group.kernel.grid));
        fields.insert("bytes".into(), group.kernel.bound_bytes.into());
        fields.insert("multiply_adds".into(), group.kernel.multiply_adds.into());
        if let Some(executable) = executable(&group.kernel.kernel) {
            fields.extend(figures(executable));
        }
        if let Some(folder) = keep {
            fields.insert("kept".into(), kept(folder, &group.kernel.kernel)?.into());
        }
        kernels.push(Value::from(fields));
    }
    Ok(json!({"step": step.name, "tokens": step.tokens, "cached": step.cached, "kernels": kernels}))
}

/// Writes SPIR-V and machine code of a kernel, and returns the files' common name.
fn kept(folder: &Path, kernel: &Kernel) -> Result<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let Some(report) = kernel.report() else { return Ok(String::new()) };
    // Kernels of one name can differ.
    let mark = report.spirv.iter().fold(0u32, |mark, &word| mark.rotate_left(5) ^ word);
    let name = format!("{}-{mark:08x}", kernel.name().chars().map(plain).collect::<String>());
    let bytes: Vec<u8> = report.spirv.iter().flat_map(|word| word.to_le_bytes()).collect();
    let write = |end: &str, bytes: &[u8]| {
        let file = folder.join(format!("{name}.{end}"));
        std::fs::write(&file, bytes).with_context(|| format!("--keep: {} could not be written", file.display()))
    };
    write("spv", &bytes)?;
    if let Some(text) = executable(kernel).and_then(|executable| executable.assembly.as_ref()) {
        write("s", text.as_bytes())?;
    }
    Ok(name)
}

/// Prints the report as JSON or tables. The exit code is 0: what is too much depends on the device.
///
/// # Errors
/// Files that cannot be written.
pub fn report(args: &CompileArgs, as_json_text: bool, gpu: &Gpu, model: Value, steps: &[Step]) -> Result<ExitCode> {
    if let Some(folder) = &args.keep {
        std::fs::create_dir_all(folder).with_context(|| format!("--keep {}", folder.display()))?;
    }
    let c = gpu.capabilities();
    let described = steps.iter().map(|step| as_json(step, args.keep.as_deref())).collect::<Result<Vec<_>>>()?;
    if as_json_text {
        let mut fields =
            json!({"device": c.name, "driver": c.driver, "path": c.path(), "subgroup_size": c.subgroup_size});
        for (name, value) in model.as_object().into_iter().flatten() {
            fields[name] = value.clone();
        }
        fields["steps"] = described.into();
        output::json(&fields)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!("{} ({}), {}, {}; compiled, not run", c.name, c.backend, c.driver, c.path()))?;
    for step in steps {
        let dispatches = step.kernels.len();
        output::line(&format!("{}: {dispatches} kernels", step.name))?;
        let number = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.0}"));
        let row = |group: &Group| {
            let executable = executable(&group.kernel.kernel);
            let figure = |figure| number(executable.and_then(|executable| executable.figure(figure)));
            let matrices = executable.and_then(Executable::matrix_instructions);
            vec![
                group.kernel.name.clone(),
                group.dispatches.to_string(),
                executable.map_or("-".into(), |executable| executable.subgroup_size.to_string()),
                figure(Figure::Registers),
                figure(Figure::Spilled),
                figure(Figure::WorkgroupBytes),
                figure(Figure::Occupancy),
                figure(Figure::Instructions),
                number(matrices.map(|count| count as f64)),
                figure(Figure::Latency),
            ]
        };
        let headings = [
            "kernel",
            "count",
            "lanes",
            "registers",
            "spilled",
            "workgroup B",
            "occupancy",
            "instructions",
            "matrix",
            "latency",
        ];
        output::line(&output::table(&headings, &groups(step).iter().map(row).collect::<Vec<_>>()))?;
    }
    Ok(ExitCode::SUCCESS)
}
