//! The layers of which models consist. A layer holds its weights and records its operations; it contains nothing
//! specific to an architecture.

mod attention;
mod embedding;
mod linear;
mod mlp;
mod norm;
mod rotary;

pub(crate) use attention::Attention;
pub(crate) use embedding::{Embedding, lm_head};
pub use linear::{Linear, LoraPair, TokenFactors};
pub(crate) use mlp::{GatedMlp, PlainMlp};
pub(crate) use norm::{LayerNorm, RmsNorm};
pub use rotary::Rotary;
pub(crate) use rotary::{RotaryTable, rotary_table};
