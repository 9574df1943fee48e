//! Sampling of the next token, and log-probabilities of tokens.

mod candidates;
mod log_probs;
mod sample;
mod scan;
mod search;

pub use log_probs::{LOG_PROB_VALUES, LogProbs, MOST_LIKELY};
pub use sample::{SETTINGS, Sample, SampleSettings, SampleStates};
