//! Normalisation of rows.

mod layer;
mod layer_backward;
mod product;
mod rms;
mod rms_backward;

pub use layer::LayerNorm;
pub use layer_backward::LayerNormBackward;
pub use product::NormProduct;
pub use rms::RmsNorm;
pub use rms_backward::RmsNormBackward;
