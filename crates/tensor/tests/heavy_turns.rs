//! No kernel executes more loop iterations (turns) than its op states: plans rely on it on devices that end loops
//! early.
//!
//! With `BAYAN_CASES`, only the cases whose name contains its value are counted.

use bayan_gpu::{Disable, Gpu, GpuOptions, block_on};
use bayan_tensor::suite;
use bayan_weights::FORMATS;

/// The weight formats whose cases are counted.
const COUNTED: [&str; 2] = ["f32", "q4_k"];

/// Counts every `step`-th case.
fn count(disable: &str, step: usize) {
    let options = GpuOptions { disable: Disable::parse(disable).unwrap(), ..Default::default() };
    let gpu = block_on(Gpu::open(&options)).expect("a device");
    let only = std::env::var("BAYAN_CASES").unwrap_or_default();
    let mut over = Vec::new();
    let mut counted = 0;
    // The loops are the same in every weight format, so two formats stand for all.
    let others: Vec<&str> = FORMATS.iter().map(|format| format.name()).filter(|name| !COUNTED.contains(name)).collect();
    let wanted = |name: &str| name.contains(&only) && !others.iter().any(|other| name.contains(other));
    let cases = suite::cases().into_iter().chain(suite::training::cases());
    for (index, case) in cases.enumerate().filter(|(_, case)| wanted(&case.name)).step_by(step) {
        let turns = block_on(suite::count_turns(&gpu, &case, index as u64)).expect(&case.name);
        counted += turns.iter().filter(|turns| turns.taken > 0).count();
        let wrong = turns.iter().filter(|turns| turns.taken > turns.stated);
        over.extend(wrong.map(|t| format!("{}: {}: stated {}, took {}", case.name, t.kernel, t.stated, t.taken)));
    }
    assert!(counted > 0, "no dispatch had loops");
    assert!(over.is_empty(), "{} dispatches with `{disable}` disabled:\n{}", over.len(), over.join("\n"));
}

#[test]
fn software() {
    count("f16", 1);
}

/// The forms for other devices take this one minutes, so every fourth case stands for them.
#[test]
fn software_plain() {
    count("f16,subgroups,dot", 4);
}

#[test]
fn hardware_shapes() {
    count("software,f16", 4);
}
