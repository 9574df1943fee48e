//! Opens the device that the flags select.

use crate::support::options::DeviceArgs;
use anyhow::{Result, bail};
use bayan_gpu::{Gpu, GpuOptions, block_on};

/// Opens the selected device.
///
/// # Errors
/// There is no such device, or it cannot be opened.
pub fn gpu(args: &DeviceArgs) -> Result<Gpu> {
    let options = GpuOptions {
        device: args.device.clone(),
        disable: args.disable,
        max_binding_bytes: args.max_binding_bytes,
        ..Default::default()
    };
    Ok(block_on(Gpu::open(&options))?)
}

/// Opens the selected device for training: f32 throughout unless `f16` is set, and without packed dot products, because
/// int8 activations have no gradient.
///
/// # Errors
/// As [`gpu`], or the device lacks f16 and `f16` is set.
pub fn gpu_to_train(args: &DeviceArgs, f16: bool) -> Result<Gpu> {
    let mut args = args.clone();
    let forbidden = args.disable.f16;
    args.disable.f16 |= !f16;
    args.disable.dot = true;
    let gpu = gpu(&args)?;
    if f16 && !gpu.capabilities().f16 {
        let why = if forbidden { " with `--disable f16`" } else { " without it" };
        let remedy = if forbidden {
            "leave one of the two flags out"
        } else {
            "choose another with --device, or leave the flag out to train in f32"
        };
        bail!("--f16: expected a device with f16 arithmetic, got {}{why}; {remedy}", gpu.capabilities().name);
    }
    Ok(gpu)
}
