//! The formats weights can take on the GPU.
//!
//! A format splits a row of `K` weights into blocks and stores each part of the blocks (codes, scales, high bits) in
//! its own *plane*, an array `[N rows][K / block]`, so that a kernel reads every part with aligned vector loads.
//! Rejected: interleaved blocks, as files of other tools have them, because their strides of 18 or 144 bytes make every
//! load unaligned.
//!
//! A format is one file here, one WGSL file, and one entry of [`FORMATS`]. Whoever must know something about formats
//! (which kernels fit, which is finer, what a GGUF block becomes, what a help text says) asks [`Format`] and never
//! compares names. All multi-byte numbers are little endian.
//!
//! `K` that is not a multiple of [`Format::block`] is padded with zero weights; tensors keep the logical `K`.

/// The text of `shaders/quant/NAME.wgsl`.
macro_rules! quant_wgsl {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shaders/quant/", $name, ".wgsl"))
    };
}

mod affine;
mod f16;
mod f32;
pub(crate) mod iq4_nl;
mod numbers;
mod planes;
mod q4_0;
mod q4_k;
mod q5_k;
mod q6_k;
mod q8_0;
mod search;
#[cfg(test)]
mod tests;

use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;
use std::fmt::Debug;

pub use self::f16::F16;
pub use self::f32::F32;
use self::numbers::peak_of;
pub(crate) use self::numbers::{half_at, halves_to_f32, push_half, push_halves, push_nibbles, round_half};
pub use self::planes::Planes;
pub use self::q4_0::Q4_0;
pub use self::q4_k::Q4K;
pub use self::q5_k::Q5K;
pub use self::q6_k::Q6K;
pub use self::q8_0::Q8_0;

/// Every format, from exact to smallest. Help texts and tests walk this table.
pub static FORMATS: &[&dyn Format] = &[&F32, &F16, &Q8_0, &Q6K, &Q5K, &Q4K, &iq4_nl::Iq4Nl, &Q4_0];

/// The format called `name`, e.g. `"q4_0"`.
pub fn format_by_name(name: &str) -> Option<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.name() == name)
}

/// The names of all formats, as messages list them.
pub fn format_names() -> String {
    FORMATS.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
}

/// The format for rows of both formats in one matrix: where they differ, numbers plain enough to hold both without
/// loss.
///
/// Quantizing one side again would add its error to that of the first time. For parts whose rows cannot stand in groups
/// of their own.
pub fn joined_format(a: &'static dyn Format, b: &'static dyn Format) -> &'static dyn Format {
    if a.name() == b.name() {
        a
    } else if [a, b].iter().any(|format| format.planes()[0].dtype == Dtype::F32) {
        &F32
    } else {
        &F16
    }
}

/// One plane of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneSpec {
    /// `"codes"`, `"scales"`, …; `"values"` for dense formats.
    pub name: &'static str,
    /// Bytes of this plane for one block.
    pub bytes_per_block: usize,
    /// Element type under which the plane is saved in safetensors.
    pub dtype: Dtype,
}

/// A value that a format cannot hold: its magnitude, or its block's scale, exceeds what f16 represents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unrepresentable {
    /// Index within the row.
    pub index: usize,
    /// The value.
    pub value: f32,
}

/// What the codes of a format are: weight = scale · code − minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// The weights themselves, without a scale.
    Values,
    /// Signed bytes from `-top` to `top`; the minimum is 0.
    Signed {
        /// The largest code.
        top: i8,
    },
    /// Codes of 4 bits that number these levels; the minimum is 0.
    Table(&'static [i8; 16]),
    /// Unsigned codes from 0 to 2^bits − 1, with a minimum. Those of 4 bits stand in one plane, byte j of a block has
    /// codes j and j + 16.
    Unsigned {
        /// At most 7, so that a code in a byte is positive for shaders that take it for a signed one.
        bits: u32,
        /// What is subtracted.
        minimum: Minimum,
    },
}

/// The minimum that is subtracted from scale · code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Minimum {
    /// scale · this code, which so stands for zero in every block.
    Centred(u8),
    /// A number of each block's own.
    Stored,
}

/// The block types of GGUF that a format stands for.
#[derive(Clone, Copy, Debug)]
pub struct BlockTypes {
    /// Those that become this format when they are read. Each type is named by one format.
    pub read: &'static [BlockType],
    /// The one with exactly this format's numbers, in which it is written; F16 where there is none.
    pub written: BlockType,
}

/// How weights are laid out, how to get there from `f32` and back, and what else there is to know about a format.
pub trait Format: Sync + Send + Debug {
    /// The name in policies, files and command lines.
    fn name(&self) -> &'static str;

    /// One line for help texts and README's table: when to choose it.
    fn help(&self) -> &'static str;

    /// Weights per block along `K`: 1 for dense formats, 32 for the quantized ones.
    fn block(&self) -> usize;

    /// Weights that share a scale: a block, or an equal part of it.
    fn group(&self) -> usize {
        self.block()
    }

    /// The planes, in the order in which they are bound and passed.
    fn planes(&self) -> &'static [PlaneSpec];

    /// What its codes are; kernels are chosen by it.
    fn codes(&self) -> Codes;

    /// The format for embeddings and output heads beside this one; `None` for itself.
    fn finer(&self) -> Option<&'static dyn Format> {
        None
    }

    /// Its block types in GGUF files.
    fn block_types(&self) -> BlockTypes;

    /// The WGSL that reads a block: its planes in group 1, `codes32`, `scales32`, and `packed32` where the format is
    /// quantized (`shaders/README.md`). `None` for formats of files that no kernel reads.
    fn wgsl(&self) -> Option<&'static str>;

    /// Appends one row to every plane.
    ///
    /// `values` `[K]`, finite, K a multiple of [`block`](Self::block). `importance` `[K]`, not negative: how much the
    /// squared error of each column counts; `None` counts all alike.
    fn quantize_row(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable>;

    /// One row back to `f32`: `planes` each hold exactly that row, `out` is `[K]` with K a multiple of the block.
    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]);

    /// Appends 32 weights that another program quantized: weight = scale · code − minimum, with a pair of (scale,
    /// minimum) for each half. Formats that can hold the codes keep them; by default the weights are quantized.
    ///
    /// Errors: the scale or weight that f16 cannot hold.
    fn push_block(&self, codes: &[i8; 32], scales: [(f32, f32); 2], planes: &mut [Vec<u8>]) -> Result<(), f32> {
        let weight = |j: usize| scales[j / 16].0 * f32::from(codes[j]) - scales[j / 16].1;
        let weights: [f32; 32] = std::array::from_fn(weight);
        self.quantize_row(&weights, None, planes).map_err(|error| error.value)
    }

    /// Appends one block, given as its part of every plane, as [`BlockTypes::written`] has it: by default the planes
    /// from last to first, as llama.cpp puts scales before codes.
    fn write_block(&self, parts: &[&[u8]], out: &mut Vec<u8>) {
        parts.iter().rev().for_each(|part| out.extend_from_slice(part));
    }

    /// For normal, uniform and heavy-tailed weights: the largest root of (squared error / squared weights), and the
    /// largest factor on what the plain method makes of it (one grid that covers the block). By default exact.
    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(0.0, 0.0); 3]
    }

    /// Stored bits for one weight, padding aside.
    fn bits_per_weight(&self) -> f64 {
        let bytes: usize = self.planes().iter().map(|plane| plane.bytes_per_block).sum();
        bytes as f64 * 8.0 / self.block() as f64
    }

    /// Whether the format stores plain numbers.
    fn is_dense(&self) -> bool {
        self.block() == 1
    }

    /// `k` rounded up to whole blocks.
    fn padded(&self, k: usize) -> usize {
        k.next_multiple_of(self.block())
    }

    /// Bytes of one row of plane number `plane` for `k` logical weights.
    fn row_bytes(&self, plane: usize, k: usize) -> u64 {
        k.div_ceil(self.block()) as u64 * self.planes()[plane].bytes_per_block as u64
    }

    /// Rows that must be taken together so that every plane advances by whole 4-byte words: 1 or 2.
    fn rows_alignment(&self, k: usize) -> usize {
        if (0..self.planes().len()).all(|plane| self.row_bytes(plane, k).is_multiple_of(4)) { 1 } else { 2 }
    }
}
