//! Sampling of the next token.

mod candidates;
mod sample;
mod scan;
mod search;

pub use sample::{SETTINGS, Sample, SampleSettings, SampleStates};
