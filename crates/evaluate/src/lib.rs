//! Arabic benchmarks, each by the rules of the harness that its published scores come from.
//!
//! A task ([`task::Task`]) says where its rows are, how a row becomes a prompt with choices, and what is counted.
//! [`suites`] has the tasks of lm-evaluation-harness, lighteval and AceGPT. [`run`] reads the rows, builds the prompts,
//! scores them with the engine and writes one line for each item; [`results`] adds them up, and [`compare`] says whether
//! two runs differ by more than chance. [`judged`] has the benchmarks that another model judges.
//!
//! The rules are plain Rust functions beside each other, checked against prompts and scores that the harnesses' own code
//! produced. Rejected: reading the harnesses' task files, because half of their rules are Python programs.

pub mod compare;
pub mod data;
pub mod encode;
mod error;
pub mod judged;
pub mod metric;
pub mod overlap;
mod prepare;
pub mod prompt;
pub mod report;
pub mod results;
pub mod run;
pub mod samples;
pub mod suites;
pub mod task;
pub mod training;

pub use error::{EvalError, Result};
