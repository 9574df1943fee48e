//! Every operation on this machine's device against its reference, with each set of features.
//!
//! With `BAYAN_CASES`, only the cases whose name contains its value run.

use bayan_gpu::{Capabilities, Disable, Gpu, GpuOptions, block_on};
use bayan_tensor::suite;

fn suite(disable: &str) {
    suite_on(disable, &std::env::var("BAYAN_CASES").unwrap_or_default(), None);
}

fn suite_on(disable: &str, only: &str, pretend: Option<fn(&mut Capabilities)>) {
    let options = GpuOptions { disable: Disable::parse(disable).unwrap(), pretend, ..Default::default() };
    let gpu = block_on(Gpu::open(&options)).expect("a device");
    let mut failures = Vec::new();
    let mut ran = 0;
    for (index, case) in suite::cases().iter().enumerate().filter(|(_, case)| case.name.contains(only)) {
        ran += 1;
        match block_on(suite::run(&gpu, case, index as u64)) {
            Ok(outcome) if outcome.passed() => {}
            Ok(outcome) => {
                failures.push(format!("{}: NMSE {:.2e}, allowed {:.0e}", outcome.name, outcome.nmse, outcome.bound))
            }
            Err(error) => failures.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(ran > 0, "no case has `{only}` in its name");
    assert!(failures.is_empty(), "{} failures with `{disable}` disabled:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn all_features() {
    suite("");
}

#[test]
fn plain() {
    suite("f16,subgroups,dot");
}

#[test]
fn checked() {
    suite("f16,unchecked");
}

/// The kernels for real GPUs, on whatever device is available.
#[test]
fn hardware_shapes() {
    suite("software");
}

#[test]
fn hardware_shapes_plain() {
    suite("software,f16,subgroups,dot");
}

/// Smaller tiles, for a device with little workgroup memory.
#[test]
fn hardware_shapes_with_little_memory() {
    for only in ["attention", "linear f32", "linear q4_0"] {
        suite_on("software,f16,subgroups,dot", only, Some(|capabilities| capabilities.max_workgroup_bytes = 16 << 10));
    }
}

/// The kernels for software devices with subgroups of 4; a quad of a wider subgroup behaves the same.
#[test]
fn software_with_subgroups_of_four() {
    for format in bayan_weights::FORMATS.iter().map(|format| format.name()) {
        for sizes in ["33x96, 9 tokens", "33x96, 31 tokens, bias"] {
            let only = format!("linear {format} {sizes}");
            suite_on("f16", &only, Some(|capabilities| capabilities.subgroup_size = (4, 4)));
        }
    }
}
