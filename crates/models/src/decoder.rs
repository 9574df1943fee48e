//! What an architecture is to the rest of Bayan.

use std::sync::Arc;

use bayan_tensor::ops::Causality;
use bayan_tensor::{Graph, Matrix, Tensor};

use crate::cache::Cache;
use crate::config::Sizes;

/// What a step hands to a decoder.
#[derive(Debug, Clone, Copy)]
pub struct StepInputs {
    /// Token ids [T].
    pub tokens: Tensor,
    /// Their positions and sequences.
    pub over: Causality,
    /// The tokens [R] whose logits are wanted; `None`: all.
    pub rows: Option<Tensor>,
}

/// A decoder-only language model with its weights.
pub trait Decoder: std::fmt::Debug {
    /// Its sizes.
    fn sizes(&self) -> &Sizes;

    /// Width K d of the cache of each layer.
    fn cache_widths(&self) -> Vec<usize>;

    /// Records a step: tokens [T] to logits [R, V].
    fn forward(&self, graph: &mut Graph, inputs: StepInputs, cache: &Cache) -> Tensor;

    /// Its weight matrices; a shared one may be named twice.
    fn matrices(&self) -> Vec<&Arc<Matrix>>;
}
