//! Decoding of GGUF's block types, and the planes that they are loaded as.
//!
//! Each format lists the types that it reads ([`Format::block_types`]). `f32`, `f16` and `bf16` are dense tensors.
//! Every other type is loaded in the format that holds the same numbers. In IQ4_XS a scale, the product of an f16 and
//! an integer of 6 bits, is rounded to f16: by 2^-12 at most ([`BlockType::change`]). Only Q2_K is quantized again, to
//! q8_0, because it has a minimum for every 16 weights, which no format here has; that adds less than a thousandth of
//! Q2_K's own error.
//!
//! `f32` rows are exact for every type. Rejected: loading everything as f16, because that would triple the memory of
//! common files.

use super::parts::Parts;
use crate::formats::{FORMATS, Format, Unrepresentable, half_at};

pub use super::block_type::BlockType;
use BlockType::*;

impl BlockType {
    /// The format that reads this type, and whose planes it is loaded as.
    pub fn native(self) -> &'static dyn Format {
        let reads = |format: &&&'static dyn Format| format.block_types().read.contains(&self);
        FORMATS.iter().find(reads).copied().unwrap_or(&crate::formats::F32)
    }

    /// What loading it as planes changes, in words; `None` for nothing.
    pub fn change(self) -> Option<&'static str> {
        match self {
            IQ4_XS => Some("scales rounded to f16"),
            Q2_K => Some("quantized again to 8 bits"),
            BF16 => Some("rounded to f16"),
            _ => None,
        }
    }

    /// Decodes whole blocks to `f32`: `blocks` holds `out.len() / block` of them.
    pub fn decode(self, blocks: &[u8], out: &mut [f32]) {
        for (bytes, out) in blocks.chunks_exact(self.bytes()).zip(out.chunks_exact_mut(self.block())) {
            match self {
                F32 => out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                F16 => out[0] = half_at(bytes, 0),
                BF16 => out[0] = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16),
                _ => Parts::of(self, bytes).values(out),
            }
        }
    }

    /// Appends one row of blocks to the planes of [`native`](Self::native). Not for dense types and Q2_K.
    ///
    /// Errors: a scale that f16 cannot represent.
    pub fn push_planes(self, row: &[u8], planes: &mut [Vec<u8>]) -> Result<(), Unrepresentable> {
        for (number, bytes) in row.chunks_exact(self.bytes()).enumerate() {
            let fails = |(index, value)| Unrepresentable { index: number * self.block() + index, value };
            Parts::of(self, bytes).push(planes).map_err(fails)?;
        }
        Ok(())
    }
}
