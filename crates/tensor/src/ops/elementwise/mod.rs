//! Element-wise operations: sums, gates, activations.

mod activate;
mod add;
mod affine;
mod gate_columns;
mod gate_columns_backward;
mod gated;
mod gated_backward;
mod map;
mod scale_columns;
mod softcap;

pub use crate::graph::Affine;
pub use activate::Activate;
pub use add::Add;
pub use gate_columns::{Columns, GateColumns};
pub use gate_columns_backward::GateColumnsBackward;
pub use gated::{Activation, Gated};
pub use gated_backward::GatedBackward;
pub use scale_columns::ScaleColumns;
pub use softcap::SoftCap;
