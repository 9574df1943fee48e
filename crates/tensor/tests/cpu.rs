//! Every operation on the CPU against its reference, with vector instructions and without.
//!
//! With `BAYAN_CASES`, only the cases whose name contains its value run.

mod common;

use bayan_tensor::{Cpu, suite};

#[test]
fn every_operation_on_the_cpu() {
    let cpus = [Cpu::open(Some(2)).expect("threads"), Cpu::portable(Some(1)).expect("threads")];
    let mut failures = Vec::new();
    let mut ran = 0;
    let cases = suite::cases();
    for (index, case) in cases.iter().enumerate().filter(|(_, case)| common::asked_for(&case.name)) {
        ran += 1;
        let outcome = suite::run_on_cpu(&cpus, case, index as u64).expect("a case");
        if !outcome.passed() {
            failures.push(format!("{}: NMSE {:.2e}, allowed {:.0e}", outcome.name, outcome.nmse, outcome.bound));
        }
    }
    assert!(ran > 100 || std::env::var("BAYAN_CASES").is_ok(), "{ran} cases");
    assert!(failures.is_empty(), "{} of {ran} cases failed:\n{}", failures.len(), failures.join("\n"));
}
