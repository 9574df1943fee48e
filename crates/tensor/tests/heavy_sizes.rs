//! Kernels at the sizes of real models against their references, for each set of kernels that this machine can run.

use bayan_gpu::{Disable, Gpu, GpuOptions, block_on};
use bayan_tensor::suite;

/// Runs the cases whose name contains one of `families`.
fn suite(disable: &str, families: &[&str]) {
    let options = GpuOptions { disable: Disable::parse(disable).unwrap(), ..Default::default() };
    let gpu = block_on(Gpu::open(&options)).expect("a device");
    let only = std::env::var("BAYAN_CASES").unwrap_or_default();
    let wanted = |name: &str| name.contains(&only) && families.iter().any(|family| name.contains(family));
    let mut failures = Vec::new();
    let mut ran = 0;
    for (index, case) in suite::large_cases().iter().enumerate().filter(|(_, case)| wanted(&case.name)) {
        ran += 1;
        match block_on(suite::run(&gpu, case, index as u64)) {
            Ok(outcome) if outcome.passed() => {}
            Ok(outcome) => {
                failures.push(format!("{}: NMSE {:.2e}, allowed {:.0e}", outcome.name, outcome.nmse, outcome.bound))
            }
            Err(error) => failures.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(ran > 0, "no case has `{only}` and one of {families:?} in its name");
    assert!(failures.is_empty(), "{} failures with `{disable}` disabled:\n{}", failures.len(), failures.join("\n"));
}

/// Cases for the kernels of other devices; the remaining cases take them minutes on a software device.
const OTHER_FAMILIES: &[&str] = &["134x32, 151936", "262144", "state_space", "select_rows", "linear q4_0 64x28672"];

#[test]
fn software() {
    suite("f16,dot", &[""]);
}

#[test]
fn software_plain() {
    suite("f16,subgroups,dot", OTHER_FAMILIES);
}

/// The kernels for real GPUs, on whatever device is available.
#[test]
fn hardware_shapes() {
    suite("software,f16,dot", OTHER_FAMILIES);
}
