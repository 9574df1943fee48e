//! Layers with a state of fixed size: short convolutions and Mamba-2.

mod short_conv;
mod short_conv_backward;
mod short_conv_weight_gradient;
mod state_space;
mod state_space_backward;

pub use short_conv::ShortConv;
pub use short_conv_backward::ShortConvBackward;
pub use short_conv_weight_gradient::ShortConvWeightGradient;
pub use state_space::{StateSpace, StateSpaceRead};
pub use state_space_backward::{Part, StateSpaceBackward};
