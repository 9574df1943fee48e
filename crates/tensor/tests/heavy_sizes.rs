//! Kernels at the sizes of real models against their references, with each kind of kernel that this machine can run.

use bayan_gpu::{Disable, Gpu, GpuOptions, block_on};
use bayan_tensor::suite;

fn suite(disable: &str) {
    let options = GpuOptions { disable: Disable::parse(disable).unwrap(), ..Default::default() };
    let gpu = block_on(Gpu::open(&options)).expect("a device");
    let only = std::env::var("BAYAN_CASES").unwrap_or_default();
    let mut failures = Vec::new();
    for (index, case) in suite::large_cases().iter().enumerate().filter(|(_, case)| case.name.contains(&only)) {
        match block_on(suite::run(&gpu, case, index as u64)) {
            Ok(outcome) if outcome.passed() => {}
            Ok(outcome) => {
                failures.push(format!("{}: NMSE {:.2e}, allowed {:.0e}", outcome.name, outcome.nmse, outcome.bound))
            }
            Err(error) => failures.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(failures.is_empty(), "{} failures with `{disable}` disabled:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn software() {
    suite("f16,dot");
}

#[test]
fn software_plain() {
    suite("f16,subgroups,dot");
}

/// The kernel shapes of real GPUs, on whatever device there is.
#[test]
fn hardware_shapes() {
    suite("software,f16,dot");
}
