//! Every operation on the CPU against its reference, with vector instructions and without.
//!
//! With `BAYAN_CASES`, only the cases whose name contains its value run.

mod common;

use bayan_tensor::{Cpu, suite};

fn compare(cpu: &Cpu) {
    let mut failures = Vec::new();
    let mut ran = 0;
    for (index, case) in suite::cases().iter().enumerate().filter(|(_, case)| common::asked_for(&case.name)) {
        ran += 1;
        let outcome = suite::run_on_cpu(cpu, case, index as u64).expect("a case");
        if !outcome.passed() {
            failures.push(format!("{}: NMSE {:.2e}, allowed {:.0e}", outcome.name, outcome.nmse, outcome.bound));
        }
    }
    assert!(ran > 0 || std::env::var("BAYAN_CASES").is_ok(), "no case has a wanted name");
    assert!(failures.is_empty(), "{} of {ran} cases failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn best_instructions() {
    compare(&Cpu::open(Some(2)).unwrap());
}

#[test]
fn portable_instructions() {
    compare(&Cpu::portable(Some(1)).unwrap());
}
