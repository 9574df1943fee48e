//! One file or folder for each subcommand; `pull`, `list` and `remove` share one.

pub mod bench;
pub mod caches;
pub mod chat;
pub mod compiled;
pub mod conformance;
pub mod devices;
pub mod eval;
pub mod export;
pub mod finetune;
pub mod generate;
pub mod help;
pub mod hub;
pub mod imatrix;
pub mod inspect;
pub mod merge;
pub mod ops;
pub mod perplexity;
pub mod quantize;
pub mod serve;
pub mod template;
pub mod tokenize;
