//! Tensors that other programs stored in forms of their own: GGUF's blocks, GPTQ's, AWQ's and MLX's packed integers.
//!
//! A [`RowReader`] gives rows of such a tensor as `f32`, exactly, and as planes of one of our formats, its *native*
//! one, chosen so that nothing is lost by default: the same numbers, or numbers whose scales are rounded to f16. What
//! changes is said in [`Foreign::change`] and shown by `bayan inspect`. One trait object per tensor, because the
//! arrays, their order and their packing differ with every maker; a conversion to temporary files lost, as it needs the
//! disk space twice.

use crate::error::WeightsError;
use crate::formats::{Format, Planes};
use crate::source::{LocalFuture, Source};
use std::fmt::Debug;
use std::ops::Range;

/// A form of another program.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// Its maker's name for it: `"Q4_K"`, `"gptq"`, …
    pub name: &'static str,
    /// The format of ours that it becomes.
    pub native: &'static dyn Format,
    /// What becoming that changes, in words; `None` for nothing.
    pub change: Option<&'static str>,
}

/// Reads rows of one tensor.
pub(crate) trait RowReader: Debug {
    /// Stored bytes of the whole tensor.
    fn size_bytes(&self) -> u64;

    /// The rows as `f32` `[rows, K]`, exactly as its maker's program has them.
    fn read_f32<'a>(
        &'a self,
        source: &'a dyn Source,
        tensor: &'a str,
        rows: Range<usize>,
    ) -> LocalFuture<'a, Result<Vec<f32>, WeightsError>>;

    /// The rows as planes of the native format; `None` where they come from quantizing [`read_f32`](Self::read_f32).
    fn read_planes<'a>(
        &'a self,
        source: &'a dyn Source,
        tensor: &'a str,
        rows: Range<usize>,
    ) -> LocalFuture<'a, Result<Option<Planes>, WeightsError>>;
}
