//! The device that the flags name.

use crate::support::options::DeviceArgs;
use anyhow::{Result, bail};
use bayan_gpu::{Gpu, GpuOptions, block_on};

/// The device that was asked for.
///
/// # Errors
/// There is none, or it does not open.
pub fn gpu(args: &DeviceArgs) -> Result<Gpu> {
    let options = GpuOptions {
        device: args.device.clone(),
        disable: args.disable,
        max_binding_bytes: args.max_binding_bytes,
        ..Default::default()
    };
    Ok(block_on(Gpu::open(&options))?)
}

/// The device that was asked for, to train on: in f32 throughout unless `f16` is asked for, and without packed dot
/// products, since activations in int8 have no gradient.
///
/// # Errors
/// As [`gpu`], or one without f16 where that is asked for.
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
