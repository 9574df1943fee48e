//! Rows by their number: of the embedding matrix, or of a tensor.

mod embed;
mod embed_backward;
mod select_rows;
mod select_rows_backward;

pub use embed::Embed;
pub use embed_backward::EmbedBackward;
pub use select_rows::SelectRows;
pub use select_rows_backward::SelectRowsBackward;
