//! The block types of GGUF: their numbers, names and sizes.
//!
//! This is apart from their decoding (`blocks.rs`), so that a format can name the types that it reads.

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

/// Type, number in files, name, weights and bytes per block.
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

/// Types that occur in files and are not read, for messages.
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
    /// Every type that is read.
    pub const ALL: [BlockType; TABLE.len()] = {
        let (mut all, mut index) = ([F32; TABLE.len()], 0);
        while index < TABLE.len() {
            all[index] = TABLE[index].0;
            index += 1;
        }
        all
    };

    /// The type with this number; the error lists the types that are read.
    pub fn from_id(id: u32) -> Result<Self, String> {
        let found = TABLE.iter().find(|line| line.1 == id).map(|line| line.0);
        found.ok_or_else(|| TABLE.iter().map(|line| line.2).collect::<Vec<_>>().join(", "))
    }

    /// The name of any type number.
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
}
