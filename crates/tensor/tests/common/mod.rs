//! What the suites share: opening a device with features turned off, and comparing cases with their references.

// Each test binary uses some of these.
#![allow(dead_code)]

use std::sync::Once;

use bayan_gpu::{Capabilities, Disable, Gpu, GpuOptions, block_on};
use bayan_tensor::suite::{self, Case};

/// This machine's device with these features turned off, seen as `override_capabilities` changes it.
pub fn open(disable: &str, override_capabilities: Option<fn(&mut Capabilities)>) -> Gpu {
    let options = GpuOptions { disable: Disable::parse(disable).unwrap(), override_capabilities, ..Default::default() };
    block_on(Gpu::open(&options)).expect("a device")
}

/// Set before any device is opened, and only once.
static UNOPTIMISED: Once = Once::new();

/// As `open`, for cases of which each kernel runs once: Mesa's software driver then does not optimise kernels, because
/// optimising them takes longer than they run. It changes nothing on other drivers.
pub fn open_unoptimised(disable: &str, override_capabilities: Option<fn(&mut Capabilities)>) -> Gpu {
    // SAFETY: drivers read variables when a device is opened, which every test of this process does after this line.
    UNOPTIMISED.call_once(|| unsafe { std::env::set_var("GALLIVM_PERF", "nopt") });
    open(disable, override_capabilities)
}

/// Whether `BAYAN_CASES` asks for a case of this name: the name contains it, or it is not set.
pub fn asked_for(name: &str) -> bool {
    std::env::var("BAYAN_CASES").map_or(true, |part| name.contains(&part))
}

/// Whether a form that repeats another with a feature less runs the case; with `BAYAN_CASES`, it runs all.
pub fn is_repeated(case: &Case) -> bool {
    case.in_repeats || std::env::var_os("BAYAN_CASES").is_some()
}

/// Runs the cases that are `wanted` and that `BAYAN_CASES` asks for, and fails with all that differ from their references.
pub fn compare(gpu: &Gpu, cases: &[Case], wanted: impl Fn(&Case) -> bool) {
    let mut failures = Vec::new();
    let mut ran = 0;
    for (index, case) in cases.iter().enumerate().filter(|(_, case)| wanted(case) && asked_for(&case.name)) {
        ran += 1;
        match block_on(suite::run(gpu, case, index as u64)) {
            Ok(outcome) if outcome.passed() => {}
            Ok(outcome) => {
                failures.push(format!("{}: NMSE {:.2e}, allowed {:.0e}", outcome.name, outcome.nmse, outcome.bound))
            }
            Err(error) => failures.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(ran > 0 || std::env::var("BAYAN_CASES").is_ok(), "no case is wanted");
    assert!(failures.is_empty(), "{} of {ran} cases failed:\n{}", failures.len(), failures.join("\n"));
}
