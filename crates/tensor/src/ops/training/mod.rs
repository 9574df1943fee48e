//! Operations that only training uses: losses, the optimizer, noise, sums of gradients, activations in f16.

mod accumulate;
mod adamw;
mod column_sum;
mod cross_entropy;
mod dropout;
mod f16;
mod loss;
mod noise;

pub use accumulate::Accumulate;
pub use adamw::{AdamW, Arenas, GradientNorm, Hyper};
pub use column_sum::ColumnSum;
pub use cross_entropy::{CrossEntropy, CrossEntropyBackward, CrossEntropyScan, IGNORED};
pub use dropout::Dropout;
pub(crate) use f16::unpack_rows;
pub use f16::{FromF16, ToF16};
pub use loss::{PreferenceLoss, WeightedLoss};
pub use noise::Noise;
