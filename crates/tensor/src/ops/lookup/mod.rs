//! Selection of rows by index, from the embedding matrix or from a tensor.

mod embed;
mod embed_backward;
mod select_rows;
mod select_rows_backward;

pub use embed::Embed;
pub use embed_backward::EmbedBackward;
pub use select_rows::SelectRows;
pub use select_rows_backward::SelectRowsBackward;
