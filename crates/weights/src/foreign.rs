//! Tensors stored in other programs' forms: GGUF's blocks; the packed integers of GPTQ, AWQ and MLX.
//!
//! A [`RowReader`] returns rows of such a tensor as exact `f32`, and as planes of its *native* format: the one of our
//! formats that keeps the same numbers, or rounds only their scales to f16. [`Foreign::change`] says what changes, and
//! `bayan inspect` shows it. There is one trait object per tensor, because arrays, order and packing differ from
//! program to program. Rejected: converting to temporary files, because that takes twice the disk space.

use crate::error::WeightsError;
use crate::formats::{Format, Planes};
use crate::source::{LocalFuture, Source};
use std::fmt::Debug;
use std::ops::Range;

/// A form of another program.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// Its name in that program: `"Q4_K"`, `"gptq"`, …
    pub name: &'static str,
    /// The format of ours in which it is loaded.
    pub native: &'static dyn Format,
    /// What loading in that format changes, in words; `None` for nothing.
    pub change: Option<&'static str>,
}

/// Reads rows of one tensor.
pub(crate) trait RowReader: Debug {
    /// Stored bytes of the whole tensor.
    fn size_bytes(&self) -> u64;

    /// The rows as `f32` `[rows, K]`, with exactly the values of the other program.
    fn read_f32<'a>(
        &'a self,
        source: &'a dyn Source,
        tensor: &'a str,
        rows: Range<usize>,
    ) -> LocalFuture<'a, Result<Vec<f32>, WeightsError>>;

    /// The rows as planes of the native format; `None` where they must be quantized from [`read_f32`](Self::read_f32).
    fn read_planes<'a>(
        &'a self,
        source: &'a dyn Source,
        tensor: &'a str,
        rows: Range<usize>,
    ) -> LocalFuture<'a, Result<Option<Planes>, WeightsError>>;
}
