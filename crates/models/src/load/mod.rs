//! From a checkpoint to the device: reading, where layers go, and parameters that are trained.

mod loader;
mod parameters;
mod placement;

pub use loader::{Loader, OnProgress};
pub(crate) use parameters::untrainable;
pub use parameters::{Parameter, Parameters, arena_sizes};
pub use placement::{Placement, split_layers};
