//! Attention, the rotary position embedding before it, and the key-value cache.

mod append;
mod append_backward;
mod backward;
mod cache;
mod decode;
mod forward;
mod rope;
mod rope_backward;

pub use append::Append;
pub use append_backward::AppendBackward;
pub use backward::AttentionBackward;
pub use cache::{CacheElement, CacheRows};
pub use decode::AttentionDecode;
pub use forward::{Attention, Causality, QUERY_TILE};
pub use rope::{HeadNorm, Projection, Rope};
pub use rope_backward::RopeBackward;
