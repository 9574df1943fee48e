//! Benchmarks that are answered in text and judged by another model.
//!
//! [`answers`] has the model answer the questions of a [`sets::JudgedSet`] with the settings that the set prescribes,
//! and keeps them in a file. [`export`] writes that file in the layouts that the original judges read. [`judge`] asks a
//! judge itself, with the published prompts ([`prompts`]), and [`import`] takes verdicts that were made elsewhere;
//! [`scores`] adds them up. A verdict that cannot be read is counted as a failure, beside the score.
//!
//! Sending requests is the caller's: [`judge::Judge`] takes bodies of chat completions. Rejected: a client in this crate,
//! because the command line has one already.

mod alrage;
pub mod answers;
pub mod export;
pub mod import;
pub mod judge;
pub mod prompts;
pub mod requests;
pub mod scores;
pub mod sets;
pub mod verdict;

use std::path::{Path, PathBuf};

/// A name as a part of a file's name.
pub fn file_part(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

/// The file of a set's answers in the folder of a run.
pub fn answers_path(folder: &Path, set: &str) -> PathBuf {
    folder.join(format!("answers_{}.jsonl", file_part(set)))
}
