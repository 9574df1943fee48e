//! Gradients: references against finite differences of the forward pass, and kernels against references.

use bayan_gpu::{Disable, Gpu, GpuOptions, block_on};
use bayan_tensor::suite;

#[test]
fn references_are_the_derivatives() {
    let mut ran = 0;
    let mut failures = Vec::new();
    for (index, case) in suite::training::gradient_cases().iter().enumerate().filter(|(_, case)| case.small) {
        let found = suite::training::finite_differences(case, index as u64).expect("the host");
        ran += 1;
        // The references' f32 results leave an error of about 1e-5 in a difference quotient.
        if found.error.is_nan() || found.error > 3e-4 {
            failures.push(format!("{}: gradient {} is off by {:.1e}", case.name, found.gradient, found.error));
        }
    }
    assert!(ran > 15, "only {ran} cases are small");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn suite(disable: &str) {
    let options = GpuOptions { disable: Disable::parse(disable).unwrap(), ..Default::default() };
    let gpu = block_on(Gpu::open(&options)).expect("a device");
    let only = std::env::var("BAYAN_CASES").unwrap_or_default();
    let mut failures = Vec::new();
    for (index, case) in suite::training::cases().iter().enumerate().filter(|(_, case)| case.name.contains(&only)) {
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
fn kernels() {
    suite("f16");
}

#[test]
fn kernels_plain() {
    suite("f16,subgroups,dot,unchecked");
}

/// The kernels for real GPUs, on whatever device is available.
#[test]
fn kernels_of_hardware() {
    // Packed dot products are disabled: they round activations to int8, which training does not do.
    suite("software,f16,dot");
}
