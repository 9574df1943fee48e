//! Every operation on this machine's device against its reference, with each set of features.
//!
//! Forms that repeat another with a feature less run a fifth of the cases (`Case::in_repeats`). With `BAYAN_CASES`, all
//! cases whose name contains its value run in every form, and no others.

mod common;

use bayan_gpu::Capabilities;
use bayan_tensor::suite;

fn suite(disable: &str) {
    common::compare(&common::open_unoptimised(disable, None), &suite::cases(), |_| true);
}

fn repeat(disable: &str) {
    common::compare(&common::open_unoptimised(disable, None), &suite::cases(), common::is_repeated);
}

fn suite_on(disable: &str, only: &str, override_capabilities: fn(&mut Capabilities)) {
    let gpu = common::open_unoptimised(disable, Some(override_capabilities));
    common::compare(&gpu, &suite::cases(), |case| case.name.contains(only));
}

#[test]
fn all_features() {
    suite("");
}

#[test]
fn plain() {
    repeat("f16,subgroups,dot");
}

#[test]
fn checked() {
    repeat("f16,unchecked");
}

/// The kernels for real GPUs, on whatever device is available.
#[test]
fn hardware_shapes() {
    suite("software");
}

#[test]
fn hardware_shapes_plain() {
    repeat("software,f16,subgroups,dot");
}

/// Smaller tiles, for a device with little workgroup memory.
#[test]
fn hardware_shapes_with_little_memory() {
    for only in ["attention", "linear f32", "linear q4_0"] {
        suite_on("software,f16,subgroups,dot", only, |capabilities| capabilities.max_workgroup_bytes = 16 << 10);
    }
}

/// The kernels for software devices with subgroups of 4; a quad of a wider subgroup behaves the same.
#[test]
fn software_with_subgroups_of_four() {
    for format in bayan_weights::FORMATS.iter().map(|format| format.name()) {
        let only = format!("linear {format} 33x96");
        suite_on("f16", &only, |capabilities| capabilities.subgroup_size = (4, 4));
    }
}
