//! The operations, by family. An op is one Rust file here, with its kernels' dispatch and its plain-Rust reference, and
//! one or more WGSL files in the folder of the same family in `shaders/`.

mod attention;
mod elementwise;
mod linear;
mod lookup;
mod norm;
mod recurrent;
mod sampling;
mod training;

/// Steps with at most this many tokens have kernels of their own on software devices: products by rows, and attention
/// that splits the cached positions over workgroups instead of the tokens.
pub(crate) const FEW_TOKENS: usize = 8;

/// The same on hardware. A product by rows reads the weights once for every 8 tokens, and mostly from the cache after
/// the first time; a tile of 64 tokens that is mostly empty leaves a large device without workgroups.
pub(crate) const FEW_TOKENS_HARDWARE: usize = 32;

/// The smallest power of two of tokens whose step runs the kernels for many tokens on a GPU: all larger steps then
/// compute a token in the same order.
pub const fn many_tokens(software: bool) -> usize {
    2 * if software { FEW_TOKENS } else { FEW_TOKENS_HARDWARE }
}

pub use attention::{
    Append, AppendBackward, Attention, AttentionBackward, AttentionDecode, CacheElement, CacheRows, Causality,
    HeadNorm, Projection, QUERY_TILE, Rope, RopeBackward,
};
pub use elementwise::{
    Activate, Activation, Add, Affine, Columns, GateColumns, GateColumnsBackward, Gated, GatedBackward, ScaleColumns,
    SoftCap,
};
pub use linear::{Int8Order, Linear, LinearBackward, Product, Quantize, Rounding, View};
pub use lookup::{Embed, EmbedBackward, SelectRows, SelectRowsBackward};
pub use norm::{LayerNorm, LayerNormBackward, NormWeightGradient, RmsNorm, RmsNormBackward};
pub use recurrent::{
    DeltaAdjoint, DeltaPart, GatedDelta, GatedDeltaBackward, GatedDeltaRead, Part, ShortConv, ShortConvBackward,
    ShortConvWeightGradient, StateSpace, StateSpaceBackward, StateSpaceRead,
};
pub use sampling::{LOG_PROB_VALUES, LogProbs, MOST_LIKELY, SETTINGS, Sample, SampleSettings, SampleStates};
pub use training::{
    Accumulate, AdamW, Arenas, ColumnSum, CrossEntropy, CrossEntropyBackward, CrossEntropyScan, Dropout, FromF16,
    GradientNorm, Hyper, IGNORED, Noise, PreferenceLoss, ToF16, WeightedLoss,
};
