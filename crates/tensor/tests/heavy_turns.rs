//! No kernel executes more loop iterations (turns) than its op states: plans rely on it on devices that end loops
//! early.
//!
//! With `BAYAN_CASES`, the cases whose name contains its value are counted; with an empty value, all. Without it, those
//! of `Case::in_repeats` are, and weights have the formats f32, q8_0 and q4_k: the loops of the others are those of the
//! format with the same blocks. Nor are the gradients of attention with heads of 512 counted: the kernels are those of
//! 256, and compiling them for counting takes over a minute.

mod common;

use bayan_gpu::block_on;
use bayan_tensor::suite::{self, Case};

/// Formats that are counted on request only.
const SAME_LOOPS: [&str; 7] = ["f16", "q6_k", "q5_1", "q5_k", "q4_1", "iq4_nl", "q4_0"];

fn is_counted(case: &Case) -> bool {
    let name = case.name.as_str();
    let weights = name.starts_with("linear") || name.starts_with("layer") || name.starts_with("embed");
    let skipped = weights && name.split_whitespace().any(|word| SAME_LOOPS.contains(&word.trim_end_matches(',')));
    let widest = name.starts_with("attention_backward") && name.contains("head_dim: 512");
    let on_request = std::env::var_os("BAYAN_CASES").is_some();
    common::asked_for(name) && (on_request || case.in_repeats && !skipped && !widest)
}

fn count(disable: &str) {
    let gpu = common::open_unoptimised(disable, None);
    let mut over = Vec::new();
    let mut counted = 0;
    let cases = suite::cases().into_iter().chain(suite::training::cases());
    for (index, case) in cases.enumerate().filter(|(_, case)| is_counted(case)) {
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
    count("f16");
}

#[test]
fn software_plain() {
    count("f16,subgroups,dot");
}

#[test]
fn hardware_shapes() {
    count("software,f16");
}
