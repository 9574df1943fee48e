//! bayan-generate
pub mod text;
