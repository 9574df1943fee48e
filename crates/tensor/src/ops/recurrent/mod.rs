//! Layers with a state of fixed size: short convolutions, Mamba-2 and the gated delta rule.

mod gated_delta;
mod gated_delta_backward;
mod short_conv;
mod short_conv_backward;
mod short_conv_weight_gradient;
mod state_space;
mod state_space_backward;

pub use gated_delta::{GatedDelta, GatedDeltaRead};
pub use gated_delta_backward::{DeltaAdjoint, DeltaPart, GatedDeltaBackward};
pub use short_conv::ShortConv;
pub use short_conv_backward::ShortConvBackward;
pub use short_conv_weight_gradient::ShortConvWeightGradient;
pub use state_space::{StateSpace, StateSpaceRead};
pub use state_space_backward::{Part, StateSpaceBackward};
