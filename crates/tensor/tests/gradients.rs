//! Gradients: references against finite differences of the forward pass, and kernels against references.

mod common;

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
    common::compare(&common::open_unoptimised(disable, None), &suite::training::cases(), |_| true);
}

/// As in the op suite, a form with fewer features than another runs a fifth of the cases.
fn repeat(disable: &str) {
    common::compare(&common::open_unoptimised(disable, None), &suite::training::cases(), common::is_repeated);
}

#[test]
fn kernels() {
    suite("f16");
}

#[test]
fn kernels_plain() {
    repeat("f16,subgroups,dot,unchecked");
}

/// The kernels for real GPUs, on whatever device is available.
#[test]
fn kernels_of_hardware() {
    // Packed dot products are disabled: they round activations to int8, which training does not do.
    suite("software,f16,dot");
}
