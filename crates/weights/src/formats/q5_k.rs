//! 5-bit groups of 32 with a minimum: between q4_k and q6_k; GGUF's Q5_0, Q5_1 and Q5_K are read as this format.
//!
//! | plane | per 32 weights | content |
//! | --- | --- | --- |
//! | codes | 16 bytes | low 4 bits: byte j: low nibble of q\[j\], high nibble of q\[j + 16\]; one `vec4<u32>` |
//! | highs | 4 bytes | high bit: one u32; that of q\[16·h + 4·i + b\] is at bit 8·b + 4·h + i |
//! | scales | 4 bytes | f16 d (low half of the u32), f16 m |
//!
//! weight = d · q − m, q in 0..=31.
//!
//! Scales and minima are found as in q4_k. The high bits are arranged so that four codes are unpacked at once as the
//! four bytes of a word: `(codes[i] & 0x0f0f0f0fu) | (((highs >> (4u * h + i)) & 0x01010101u) << 4u)`.

use super::affine::{BLOCK, SUPER, shared_grids};
use super::search::block_weights;
use super::{
    BlockTypes, Codes, Format, Minimum, PlaneSpec, Q6K, Unrepresentable, half_at, peak_of, push_half, push_nibbles,
    round_half,
};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 6 bits a weight.
#[derive(Debug)]
pub struct Q5K;

const TOP: f32 = 31.0;

impl Format for Q5K {
    fn name(&self) -> &'static str {
        "q5_k"
    }

    fn help(&self) -> &'static str {
        "between q4_k and q6_k"
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        &[
            PlaneSpec { name: "codes", bytes_per_block: 16, dtype: Dtype::U8 },
            PlaneSpec { name: "highs", bytes_per_block: 4, dtype: Dtype::U8 },
            PlaneSpec { name: "scales", bytes_per_block: 4, dtype: Dtype::F16 },
        ]
    }

    fn codes(&self) -> Codes {
        Codes::Unsigned { bits: 5, minimum: Minimum::Stored }
    }

    fn finer(&self) -> Option<&'static dyn Format> {
        Some(&Q6K)
    }

    fn block_types(&self) -> BlockTypes {
        BlockTypes { read: &[BlockType::Q5_0, BlockType::Q5_1, BlockType::Q5_K], written: BlockType::Q5_1 }
    }

    fn wgsl(&self) -> Option<&'static str> {
        Some(quant_wgsl!("q5_k"))
    }

    fn quantize_row(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable> {
        for (number, chunk) in values.chunks(SUPER).enumerate() {
            let start = number * SUPER;
            let blocks = chunk.as_chunks::<BLOCK>().0;
            let weights: Vec<[f32; BLOCK]> =
                (0..blocks.len()).map(|i| block_weights(importance, start + i * BLOCK)).collect();
            let Some(grids) = shared_grids(blocks, &weights, TOP) else {
                let peak = peak_of(chunk);
                return Err(Unrepresentable { index: start + peak.index, ..peak });
            };
            for (block, grid) in blocks.iter().zip(grids) {
                let inverse = grid.inverse();
                push_codes(&block.map(|value| grid.code(value, inverse, TOP) as u8), planes);
                push_half(&mut planes[2], grid.scale);
                push_half(&mut planes[2], grid.min);
            }
        }
        Ok(())
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (index, block) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let (scale, min) = (half_at(planes[2], 2 * index), half_at(planes[2], 2 * index + 1));
            let codes = &planes[0][index * 16..][..16];
            let highs = &planes[1][index * 4..][..4];
            for (j, value) in block.iter_mut().enumerate() {
                let low = if j < 16 { codes[j] & 15 } else { codes[j - 16] >> 4 };
                let bit = high_bit(j);
                let high = highs[bit / 8] >> (bit % 8) & 1;
                *value = scale * f32::from(low | high << 4) - min;
            }
        }
    }

    fn push_block(&self, codes: &[i8; 32], scales: [(f32, f32); 2], planes: &mut [Vec<u8>]) -> Result<(), f32> {
        let (scale, min) = scales[0];
        let (scale, min) = (round_half(scale).ok_or(scale)?, round_half(min).ok_or(min)?);
        push_codes(&codes.map(|code| code as u8), planes);
        push_half(&mut planes[2], scale);
        push_half(&mut planes[2], min);
        Ok(())
    }

    /// Q5_1 adds its minimum instead of subtracting it, and stores the high bit of code j at bit j.
    fn write_block(&self, parts: &[&[u8]], out: &mut Vec<u8>) {
        let (codes, highs, scales) = (parts[0], parts[1], parts[2]);
        out.extend_from_slice(&[scales[0], scales[1], scales[2], scales[3] ^ 0x80]);
        let high = |j: usize| u32::from(highs[high_bit(j) / 8] >> (high_bit(j) % 8) & 1) << j;
        out.extend((0..BLOCK).fold(0, |word, j| word | high(j)).to_le_bytes());
        out.extend_from_slice(codes);
    }

    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(3.7e-2, 0.97), (2.9e-2, 0.98), (4.9e-2, 0.97)]
    }
}

/// The position of the high bit of code `j`.
fn high_bit(j: usize) -> usize {
    8 * (j % 4) + 4 * (j / 16) + j % 16 / 4
}

/// Appends the codes of one block to the planes `codes` and `highs`.
fn push_codes(q: &[u8; BLOCK], planes: &mut [Vec<u8>]) {
    push_nibbles(&q.map(|q| q & 15), &mut planes[0]);
    let highs = q.iter().enumerate().fold(0u32, |word, (j, q)| word | u32::from(q >> 4 & 1) << high_bit(j));
    planes[1].extend(highs.to_le_bytes());
}
