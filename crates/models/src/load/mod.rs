//! From a checkpoint to the device: reading, describing without reading, placement of layers on devices, and trained
//! parameters.

mod loader;
mod parameters;
mod placement;
mod reader;
mod recorder;
mod unread;

pub use loader::Loader;
pub(crate) use parameters::untrainable;
pub use parameters::{Parameter, Parameters, arena_sizes};
pub(crate) use placement::refuse_apart;
pub use placement::{Placement, split_layers};
pub use reader::OnProgress;
pub use recorder::{DescribedTensor, Description, FirstValues, describe};
pub(crate) use unread::refuse_unread;
