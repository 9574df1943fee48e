//! The block types of GGUF: their sizes, their values, and the planes they become.
//!
//! | type | becomes | change |
//! | --- | --- | --- |
//! | F32, F16, BF16 | as any dense tensor | none |
//! | Q4_0, Q8_0 | q4_0, q8_0 | none: the same numbers |
//! | Q4_1 | q4_k | none |
//! | Q5_0, Q5_1 | q5_k | none |
//! | IQ4_NL, MXFP4 | q8_0 | none: their 16 levels are 8-bit integers |
//! | Q4_K, Q5_K, Q3_K, Q6_K, IQ4_XS | q4_k, q5_k, q6_k, q6_k, q8_0 | codes exact; a scale, the product of an f16 and an integer of up to 8 bits, is rounded to f16: by 2^-12 at most |
//! | Q2_K | q8_0 | quantized again: it has a minimum for every 16 weights, which no format here has; that adds less than a thousandth of Q2_K's own error |
//!
//! `f32` rows are exact for every type. The other rule, everything to f16, would have tripled the memory of the files
//! people have.

use super::parts::Parts;
use crate::formats::{self, Format, Unrepresentable, half_at};

/// The element type of a GGUF tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

use BlockType::*;

/// Type, number in files, name, weights and bytes of a block.
const TABLE: &[(BlockType, u32, &str, usize, usize)] = &[
    (F32, 0, "F32", 1, 4),
    (F16, 1, "F16", 1, 2),
    (Q4_0, 2, "Q4_0", 32, 18),
    (Q4_1, 3, "Q4_1", 32, 20),
    (Q5_0, 6, "Q5_0", 32, 22),
    (Q5_1, 7, "Q5_1", 32, 24),
    (Q8_0, 8, "Q8_0", 32, 34),
    (Q2_K, 10, "Q2_K", 256, 84),
    (Q3_K, 11, "Q3_K", 256, 110),
    (Q4_K, 12, "Q4_K", 256, 144),
    (Q5_K, 13, "Q5_K", 256, 176),
    (Q6_K, 14, "Q6_K", 256, 210),
    (IQ4_NL, 20, "IQ4_NL", 32, 18),
    (IQ4_XS, 23, "IQ4_XS", 256, 136),
    (BF16, 30, "BF16", 1, 2),
    (MXFP4, 39, "MXFP4", 32, 17),
];

/// Numbers that occur in files and are not read, for messages.
const OTHERS: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
];

impl BlockType {
    /// The type with this number; otherwise the names of those there are.
    pub fn from_id(id: u32) -> Result<Self, String> {
        let found = TABLE.iter().find(|line| line.1 == id).map(|line| line.0);
        found.ok_or_else(|| TABLE.iter().map(|line| line.2).collect::<Vec<_>>().join(", "))
    }

    /// A name for any number.
    pub fn name_of(id: u32) -> &'static str {
        let known = TABLE.iter().map(|line| (line.1, line.2)).chain(OTHERS.iter().copied());
        known.into_iter().find(|(number, _)| *number == id).map_or("unknown", |(_, name)| name)
    }

    fn line(self) -> &'static (BlockType, u32, &'static str, usize, usize) {
        TABLE.iter().find(|line| line.0 == self).unwrap_or(&TABLE[0])
    }

    /// Its number in files.
    pub fn id(self) -> u32 {
        self.line().1
    }

    /// llama.cpp's name.
    pub fn name(self) -> &'static str {
        self.line().2
    }

    /// Weights of a block.
    pub fn block(self) -> usize {
        self.line().3
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.line().4
    }

    /// The format its planes take, see the table above.
    pub fn native(self) -> &'static dyn Format {
        match self {
            F32 => &formats::F32,
            F16 | BF16 => &formats::F16,
            Q4_0 => &formats::Q4_0,
            Q4_1 | Q4_K => &formats::Q4K,
            Q5_0 | Q5_1 | Q5_K => &formats::Q5K,
            Q3_K | Q6_K => &formats::Q6K,
            Q8_0 | Q2_K | IQ4_NL | IQ4_XS | MXFP4 => &formats::Q8_0,
        }
    }

    /// What becoming planes changes, in words; `None` for nothing.
    pub fn change(self) -> Option<&'static str> {
        match self {
            Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS => Some("scales rounded to f16"),
            Q2_K => Some("quantized again to 8 bits"),
            BF16 => Some("rounded to f16"),
            _ => None,
        }
    }

    /// Whole blocks to `f32`: `blocks` holds `out.len() / block` of them.
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

    /// One row of blocks appended to the planes of [`native`](Self::native). Not for dense types and Q2_K.
    ///
    /// Errors: a scale that f16 cannot hold.
    pub fn push_planes(self, row: &[u8], planes: &mut [Vec<u8>]) -> Result<(), Unrepresentable> {
        for (number, bytes) in row.chunks_exact(self.bytes()).enumerate() {
            let parts = Parts::of(self, bytes);
            for group in 0..self.block() / 32 {
                let fails = |value: f32| Unrepresentable { index: number * self.block() + group * 32, value };
                parts.push_group(group, planes).map_err(fails)?;
            }
        }
        Ok(())
    }
}
