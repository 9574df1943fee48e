//! 6-bit symmetric groups of 16: for embeddings and output heads beside q4_k, where 4 bits visibly reduce quality.
//!
//! | plane | per 32 weights | content |
//! | --- | --- | --- |
//! | codes | 16 bytes | low 4 bits: byte j: low nibble of q\[j\], high nibble of q\[j + 16\]; one `vec4<u32>` |
//! | highs | 8 bytes | high 2 bits: two u32; q\[16·h + 4·i + b\] is in word h at bit 8·b + 2·i |
//! | scales | 4 bytes | f16 of weights 0..16 (low half of the u32), f16 of weights 16..32 |
//!
//! weight = d · (q − 32), q in 0..=63.
//!
//! The high bits are arranged so that four codes are unpacked at once as the four bytes of a word, for i in 0..4:
//!
//! ```wgsl
//! let first  = (codes\[i\] & 0x0f0f0f0fu)         | (((highs\[0\] >> (2u * i)) & 0x03030303u) << 4u); // 4i ..
//! let second = ((codes\[i\] >> 4u) & 0x0f0f0f0fu) | (((highs\[1\] >> (2u * i)) & 0x03030303u) << 4u); // 16 + 4i ..
//! ```
//!
//! Scales are independent f16 numbers. GGUF's Q6_K scale, one f16 times an 8-bit integer per 16 weights, is multiplied
//! out when read; as the plane holds f16 anyway, restricting our own quantizer to such products would only add error.

use super::search::{Levels, best_scale, block_weights, code, invert};
use super::{
    BlockTypes, Codes, Format, Minimum, PlaneSpec, Unrepresentable, half_at, peak_of, push_half, push_nibbles,
    round_half,
};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 7 bits a weight.
#[derive(Debug)]
pub struct Q6K;

const BLOCK: usize = 32;
const GROUP: usize = 16;
const LEVELS: Levels = Levels { low: -32.0, high: 31.0 };

/// Word and bit of the two high bits of code `j`.
fn high_place(j: usize) -> (usize, usize) {
    let (i, b) = (j % 16 / 4, j % 4);
    (j / 16, 8 * b + 2 * i)
}

impl Format for Q6K {
    fn name(&self) -> &'static str {
        "q6_k"
    }

    fn help(&self) -> &'static str {
        "little loss; for embeddings and output heads beside 4 and 5 bits"
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn group(&self) -> usize {
        GROUP
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        const {
            &[
                PlaneSpec::new("codes", 16, Dtype::U8),
                PlaneSpec::new("highs", 8, Dtype::U8),
                PlaneSpec::new("scales", 4, Dtype::F16),
            ]
        }
    }

    fn codes(&self) -> Codes {
        Codes::Unsigned { bits: 6, minimum: Minimum::Centred(32) }
    }

    fn block_types(&self) -> BlockTypes {
        // Q6_K's own scales, an f16 times 8 bits, are coarser than these.
        BlockTypes { read: &[BlockType::Q6_K, BlockType::Q3_K], written: &[BlockType::F16] }
    }

    fn wgsl(&self) -> Option<&'static str> {
        Some(quant_wgsl!("q6_k"))
    }

    fn quantize_row(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable> {
        for (index, block) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
            let mut q = [0u8; BLOCK];
            for (half, group) in block.as_chunks::<GROUP>().0.iter().enumerate() {
                let start = index * BLOCK + half * GROUP;
                let weights = block_weights::<GROUP>(importance, start);
                let Some(scale) = best_scale(group, &weights, LEVELS) else {
                    let peak = peak_of(group);
                    return Err(Unrepresentable { index: start + peak.index, ..peak });
                };
                let inverse = invert(scale);
                for (j, &value) in group.iter().enumerate() {
                    q[half * GROUP + j] = (code(value, inverse, LEVELS) + 32.0) as u8;
                }
                push_half(&mut planes[2], scale);
            }
            push_codes(&q, planes);
        }
        Ok(())
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (index, block) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let codes = &planes[0][index * 16..][..16];
            let highs = &planes[1][index * 8..][..8];
            for (j, value) in block.iter_mut().enumerate() {
                let low = if j < 16 { codes[j] & 15 } else { codes[j - 16] >> 4 };
                let (word, bit) = high_place(j);
                let high = (highs[word * 4 + bit / 8] >> (bit % 8)) & 3;
                let scale = half_at(planes[2], index * 2 + j / GROUP);
                *value = scale * (f32::from(low | high << 4) - 32.0);
            }
        }
    }

    fn push_block(&self, codes: &[i8; 32], scales: [(f32, f32); 2], planes: &mut [Vec<u8>]) -> Result<(), f32> {
        let [first, second] = scales.map(|(scale, _)| round_half(scale).ok_or(scale));
        push_codes(&codes.map(|code| (code + 32) as u8), planes);
        push_half(&mut planes[2], first?);
        push_half(&mut planes[2], second?);
        Ok(())
    }

    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(2e-2, 0.98), (1.8e-2, 0.99), (2.8e-2, 0.98)]
    }
}

/// Appends the codes (0..=63) of one block to the planes `codes` and `highs`.
fn push_codes(q: &[u8; BLOCK], planes: &mut [Vec<u8>]) {
    let mut highs = [0u32; 2];
    for (j, &q) in q.iter().enumerate() {
        let (word, bit) = high_place(j);
        highs[word] |= u32::from(q >> 4) << bit;
    }
    push_nibbles(&q.map(|q| q & 15), &mut planes[0]);
    planes[1].extend(highs.iter().flat_map(|word| word.to_le_bytes()));
}
