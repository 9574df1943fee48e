//! `bayan devices`: the devices that the drivers offer, and the CPU; the features that Bayan uses.

use std::process::ExitCode;

use anyhow::Result;
use bayan_generate::Cpu;
use bayan_gpu::{Capabilities, DeviceSummary, Disable, block_on, list_devices};
use clap::Args;
use serde_json::{Value, json};

use crate::support::device::has_no_gpu;
use crate::support::output;

/// Flags of `bayan devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Features to disable, separated by commas: f16, subgroups, dot, matrices, unchecked
    #[arg(long, env = "BAYAN_DISABLE", value_name = "LIST", value_parser = Disable::parse, default_value = "", hide_default_value = true)]
    disable: Disable,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the devices, the best one first, then the CPU.
///
/// # Errors
/// The CPU cannot start a thread.
pub fn run(args: &DevicesArgs) -> Result<ExitCode> {
    let devices = block_on(list_devices(args.disable));
    let cpu = Cpu::open(None)?;
    let c = cpu.capabilities();
    if args.json {
        output::json(&json!({
            "devices": devices.iter().map(describe).collect::<Vec<_>>(),
            "cpu": { "name": c.name, "threads": cpu.threads(), "path": c.path() },
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for device in &devices {
        print(device)?;
    }
    output::line(&format!("cpu: {}", c.name))?;
    output::line(&format!("   {}; no training", c.driver))?;
    let default = if has_no_gpu(&devices) { "There is no GPU: the CPU" } else { "The first device" };
    output::line(&format!("{default} is used unless `--device N`, `--device NAME` or `--device cpu` names another."))?;
    Ok(ExitCode::SUCCESS)
}

/// The JSON of one device.
fn describe(device: &DeviceSummary) -> Value {
    let c = &device.capabilities;
    json!({
        "index": device.index,
        "name": c.name,
        "driver": c.driver,
        "backend": c.backend,
        "type": c.device_type,
        "software": c.software,
        "uses": features(c),
        "path": c.path(),
        "missing": c.missing,
        "matrix_size": c.matrix_size,
        "subgroup_size": [c.subgroup_size.0, c.subgroup_size.1],
        "memory_bytes": c.memory_bytes,
        "limits": {
            "max_binding_bytes": c.max_binding_bytes,
            "max_buffer_bytes": c.max_buffer_bytes,
            "max_workgroup_bytes": c.max_workgroup_bytes,
            "max_workgroup_size": c.max_workgroup_size,
            "max_workgroups": c.max_workgroups,
            "max_storage_buffers": c.max_storage_buffers,
            "offset_alignment": c.offset_alignment,
        },
    })
}

fn features(c: &Capabilities) -> Vec<&'static str> {
    let all = [
        (c.f16, "f16"),
        (c.subgroups, "subgroups"),
        (c.dot, "dot"),
        (c.matrix_size.is_some(), "matrices"),
        (c.timestamps, "timestamps"),
        (c.unchecked, "unchecked"),
    ];
    all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect()
}

fn print(device: &DeviceSummary) -> Result<()> {
    let c = &device.capabilities;
    output::line(&format!("{}: {}", device.index, c.name))?;
    output::line(&format!("   {} ({}), {}", c.backend, c.device_type, c.driver))?;
    if c.software {
        output::line("   software device: runs on the CPU, with correct results but far slower than `--device cpu`")?;
    }
    output::line(&format!("   uses: {}", features(c).join(", ")))?;
    if c.subgroups {
        output::line(&format!("   subgroups of {} to {}", c.subgroup_size.0, c.subgroup_size.1))?;
    }
    if let Some(size) = c.matrix_size {
        output::line(&format!("   cooperative matrices of {size} x {size}"))?;
    }
    if let Some(bytes) = c.memory_bytes {
        output::line(&format!("   memory: {}", output::size(bytes)))?;
    }
    output::line(&format!(
        "   limits: bindings up to {}, buffers up to {}",
        output::size(c.max_binding_bytes),
        output::size(c.max_buffer_bytes)
    ))?;
    output::line(&format!(
        "   workgroups: up to {} invocations and {} of memory",
        c.max_workgroup_size,
        output::size(c.max_workgroup_bytes.into())
    ))?;
    for missing in &c.missing {
        output::line(&format!("   missing: {missing}"))?;
    }
    Ok(())
}
