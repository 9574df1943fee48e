//! Formats of weights on the GPU.
//!
//! A format splits a row of `K` weights into blocks and stores each part of the blocks (codes, scales, high bits) in
//! its own *plane*, an array `[N rows][K / block]`, so that a kernel reads every part with aligned vector loads. A part
//! may belong to 8 blocks together ([`PlaneSpec::blocks`]); the last of a row may then have fewer.
//! Rejected: interleaved blocks, as files of other tools have them, because their strides of 18 or 144 bytes make every
//! load unaligned.
//!
//! A format is one file here, one WGSL file, and one entry of [`FORMATS`]. Code that needs a fact about a format (its
//! kernels, its finer format, its GGUF block types, its help text) asks [`Format`] and never compares names. All
//! multi-byte numbers are little endian.
//!
//! `K` that is not a multiple of [`Format::block`] is padded with zero weights; tensors keep the logical `K`.

/// The text of `shaders/quant/NAME.wgsl`, after that of `shaders/lib/CODES.wgsl` where several formats have its codes.
macro_rules! quant_wgsl {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shaders/quant/", $name, ".wgsl"))
    };
    ($codes:literal, $name:literal) => {
        concat!(
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shaders/lib/", $codes, ".wgsl")),
            quant_wgsl!($name)
        )
    };
}

mod affine;
mod f16;
mod f32;
pub(crate) mod iq4_nl;
mod numbers;
mod planes;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod search;
mod shared;
mod steps;
#[cfg(test)]
mod tests;

use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;
use std::fmt::Debug;

pub use self::f16::F16;
pub use self::f32::F32;
use self::numbers::peak_of;
pub(crate) use self::numbers::{
    half_at, halves_to_f32, push_half, push_halves, push_nibbles, round_half, rounded_unit,
};
pub use self::planes::Planes;
pub use self::q4_0::Q4_0;
pub use self::q4_1::Q4_1;
pub use self::q4_k::Q4K;
pub use self::q5_1::Q5_1;
pub use self::q5_k::Q5K;
pub use self::q6_k::Q6K;
pub use self::q8_0::Q8_0;
pub use self::shared::SharedScales;
pub use self::steps::StepScales;

/// Every format, from exact to smallest; help texts and tests iterate over this table.
pub static FORMATS: &[&dyn Format] = &[&F32, &F16, &Q8_0, &Q6K, &Q5_1, &Q5K, &Q4_1, &Q4K, &iq4_nl::Iq4Nl, &Q4_0];

/// The format called `name`, e.g. `"q4_0"`.
pub fn format_by_name(name: &str) -> Option<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.name() == name)
}

/// The names of all formats, for messages.
pub fn format_names() -> String {
    FORMATS.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
}

/// The format for one matrix with rows of both formats; where they differ, f32 if one of them is f32, otherwise f16.
///
/// Quantizing one side again would add a second error. This is for stacked matrices whose parts cannot keep their own
/// format.
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
    /// Bytes of this plane for [`blocks`](Self::blocks) blocks of a row.
    pub bytes: usize,
    /// Consecutive blocks of a row that one unit of this plane belongs to.
    pub blocks: usize,
    /// Element type under which the plane is saved in safetensors.
    pub dtype: Dtype,
    /// How many numbers at the beginning of each unit are f16 and have to be finite; planes of type F16 have no others.
    pub halves: usize,
    /// Bytes at the beginning of each unit that kernels load apart from the rest, which they load in words of 4 bytes;
    /// 0: a unit is loaded in parts of 16 bytes, or as a whole where it has fewer.
    pub apart: usize,
}

impl PlaneSpec {
    /// A plane with `bytes` bytes for each block.
    pub(crate) const fn new(name: &'static str, bytes: usize, dtype: Dtype) -> Self {
        let halves = if matches!(dtype, Dtype::F16) { bytes / 2 } else { 0 };
        Self { name, bytes, blocks: 1, dtype, halves, apart: 0 }
    }

    /// A plane of type U8 with `bytes` bytes for 8 blocks, of which the first are `halves` f16 numbers.
    pub(crate) const fn of_eight(name: &'static str, bytes: usize, halves: usize) -> Self {
        Self { name, bytes, blocks: 8, dtype: Dtype::U8, halves, apart: 0 }
    }

    /// With [`PlaneSpec::apart`].
    const fn apart(self, apart: usize) -> Self {
        Self { apart, ..self }
    }
}

/// A value that a format cannot represent: its magnitude, or its block's scale, exceeds f16's range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unrepresentable {
    /// Index within the row.
    pub index: usize,
    /// The value.
    pub value: f32,
}

/// The kind of codes of a format: weight = scale · code − minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// The weights themselves, without a scale.
    Values,
    /// Signed bytes from `-top` to `top`; the minimum is 0.
    Signed {
        /// The largest code.
        top: i8,
    },
    /// 4-bit indices into these levels; the minimum is 0.
    Table(&'static [i8; 16]),
    /// Unsigned codes from 0 to 2^bits − 1, with a minimum. 4-bit codes are in one plane: byte j of a block has codes j
    /// and j + 16.
    Unsigned {
        /// At most 7, so that a code is also positive in shaders that read it as a signed byte.
        bits: u32,
        /// The minimum.
        minimum: Minimum,
    },
}

/// The minimum that is subtracted from scale · code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Minimum {
    /// The minimum is scale · this code, so that this code means zero in every block.
    Centred(u8),
    /// Each block stores its own minimum.
    Stored,
}

/// The GGUF block types of a format.
#[derive(Clone, Copy, Debug)]
pub struct BlockTypes {
    /// Block types that are read as this format. Each type belongs to one format.
    pub read: &'static [BlockType],
    /// The block types for writing. The first has exactly this format's numbers; a second one is for rows that the
    /// first does not divide, and rounds scales to f16. Where neither fits, F16 is written.
    pub written: &'static [BlockType],
}

/// How weights are laid out and converted from and to `f32`, and all other facts about a format.
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

    /// The kind of codes, which selects kernels.
    fn codes(&self) -> Codes;

    /// The format for embeddings and output heads when this one is used for layers; `None` for this one.
    fn finer(&self) -> Option<&'static dyn Format> {
        None
    }

    /// Its GGUF block types.
    fn block_types(&self) -> BlockTypes;

    /// The WGSL that reads a block: its planes in group 1, `codes32`, `scales32`, and `packed32` where the format is
    /// quantized (`shaders/README.md`). `None` for formats of files that no kernel reads.
    fn wgsl(&self) -> Option<&'static str>;

    /// Appends one row to every plane.
    ///
    /// `values` `[K]` are finite, K a multiple of [`block`](Self::block). `importance` `[K]`, not negative, weights the
    /// squared error of each column; `None` weights all equally.
    fn quantize_row(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable>;

    /// Converts one row to `f32`: `planes` each hold exactly that row, `out` is `[K]` with K a multiple of the block.
    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]);

    /// Appends 32 weights that another program quantized: weight = scale · code − minimum, with a pair of (scale,
    /// minimum) for each half. Formats that can represent the codes keep them; the default implementation quantizes the
    /// weights.
    ///
    /// Errors: the scale or weight that f16 cannot represent.
    fn push_block(&self, codes: &[i8; 32], scales: [(f32, f32); 2], planes: &mut [Vec<u8>]) -> Result<(), f32> {
        let weight = |j: usize| scales[j / 16].0 * f32::from(codes[j]) - scales[j / 16].1;
        let weights: [f32; 32] = std::array::from_fn(weight);
        self.quantize_row(&weights, None, planes).map_err(|error| error.value)
    }

    /// Appends 256 weights that another program quantized with [`SharedScales`]. The default implementation is for
    /// formats without such scales: it rounds them to f16.
    ///
    /// Errors: as [`push_block`](Self::push_block).
    fn push_super_block(&self, codes: &[i8; 256], scales: &SharedScales, planes: &mut [Vec<u8>]) -> Result<(), f32> {
        let mut groups = codes.as_chunks::<32>().0.iter().enumerate();
        groups.try_for_each(|(block, codes)| self.push_block(codes, [scales.pair(block); 2], planes))
    }

    /// Appends 256 weights that another program quantized with [`StepScales`], without minima. The default
    /// implementation is for formats without such scales: it rounds them to f16.
    ///
    /// Errors: as [`push_block`](Self::push_block).
    fn push_stepped(&self, codes: &[i8; 256], scales: &StepScales, planes: &mut [Vec<u8>]) -> Result<(), f32> {
        let mut groups = codes.as_chunks::<32>().0.iter().enumerate();
        let scale = |group| (scales.scale(group), 0.0);
        groups.try_for_each(|(block, codes)| self.push_block(codes, [scale(2 * block), scale(2 * block + 1)], planes))
    }

    /// Appends one row, given as its part of every plane, in blocks of a type of [`BlockTypes::written`]. The default
    /// writes the planes of each block from last to first, as llama.cpp puts scales before codes.
    ///
    /// Errors: a scale that f16 cannot represent.
    fn write_row(&self, _kind: BlockType, planes: &[&[u8]], out: &mut Vec<u8>) -> Result<(), f32> {
        let sizes: Vec<usize> = self.planes().iter().map(|plane| plane.bytes).collect();
        for block in 0..planes[0].len() / sizes[0] {
            for (plane, size) in planes.iter().zip(&sizes).rev() {
                out.extend_from_slice(&plane[block * size..][..*size]);
            }
        }
        Ok(())
    }

    /// For normal, uniform and heavy-tailed weights: the largest allowed root of (squared error / squared weights), and
    /// the largest allowed ratio to the error of the plain method (one grid that covers the block). The default is
    /// exact.
    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(0.0, 0.0); 3]
    }

    /// Stored bits per weight, without padding.
    fn bits_per_weight(&self) -> f64 {
        let bytes: f64 = self.planes().iter().map(|plane| plane.bytes as f64 / plane.blocks as f64).sum();
        bytes * 8.0 / self.block() as f64
    }

    /// Whether the format stores plain floats.
    fn is_dense(&self) -> bool {
        self.block() == 1
    }

    /// `k` rounded up to a multiple of the block.
    fn padded(&self, k: usize) -> usize {
        k.next_multiple_of(self.block())
    }

    /// Bytes of one row of plane number `plane` for `k` logical weights.
    fn row_bytes(&self, plane: usize, k: usize) -> u64 {
        let spec = &self.planes()[plane];
        k.div_ceil(self.block()).div_ceil(spec.blocks) as u64 * spec.bytes as u64
    }

    /// The number of rows, 1 or 2, after which every plane is at a whole 4-byte word.
    fn rows_alignment(&self, k: usize) -> usize {
        if (0..self.planes().len()).all(|plane| self.row_bytes(plane, k).is_multiple_of(4)) { 1 } else { 2 }
    }
}
