//! Sampling of the next token.

mod sample;

pub use sample::{SETTINGS, Sample, SampleSettings, SampleStates};
