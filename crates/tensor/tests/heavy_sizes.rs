//! Kernels at the sizes of real models against their references, for each set of kernels that this machine can run.

mod common;

use bayan_tensor::suite::{self, Case};

/// Runs the cases whose name contains one of `families`.
fn suite(disable: &str, families: &[&str]) {
    let wanted = |case: &Case| families.iter().any(|family| case.name.contains(family));
    common::compare(&common::open(disable, None), &suite::large_cases(), wanted);
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
