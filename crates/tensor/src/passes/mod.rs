//! Rewrites of a recorded list: fusion, rows selected early, differentiation, partition over devices, saved
//! activations in f16, and input statistics.

mod activations_f16;
mod autodiff;
mod early_rows;
mod fuse;
mod importance;
mod partition;

pub use activations_f16::store_activations_f16;
pub use autodiff::{Backward, BackwardError, BackwardOptions};
pub use fuse::{count_ops, fuse};
pub(crate) use fuse::{round_inputs, round_to_f16};
pub use partition::{Stage, Transfer, partition};
