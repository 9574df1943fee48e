//! Products with a model's weights, and of two tensors.

mod backward;
mod forward;
mod product;
mod quantize;

pub use backward::LinearBackward;
pub use forward::Linear;
pub(crate) use forward::{by_rows, sweeps, takes_int8};
pub use product::{Product, View};
pub use quantize::{Packing, Quantize};
