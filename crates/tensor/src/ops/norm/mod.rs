//! Normalisation of rows.

mod layer;
mod layer_backward;
mod rms;
mod rms_backward;
mod weight_gradient;

pub use layer::LayerNorm;
pub use layer_backward::LayerNormBackward;
pub use rms::RmsNorm;
pub use rms_backward::RmsNormBackward;
pub use weight_gradient::NormWeightGradient;
