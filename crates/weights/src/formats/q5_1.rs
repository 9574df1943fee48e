//! 5-bit groups of 32 with a scale and a minimum of their own: what GGUF's Q5_0 and Q5_1 become.
//!
//! | plane | per 32 weights | content |
//! | --- | --- | --- |
//! | codes | 16 bytes | low 4 bits: byte j: low nibble of q\[j\], high nibble of q\[j + 16\]; one `vec4<u32>` |
//! | highs | 4 bytes | high bit: one u32; that of q\[16·h + 4·i + b\] is at bit 8·b + 4·h + i |
//! | scales | 4 bytes | f16 d (low half of the u32), f16 m |
//!
//! weight = d · q − m, q in 0..=31.
//!
//! The high bits are arranged so that four codes are unpacked at once as the four bytes of a word:
//! `(codes[i] & 0x0f0f0f0fu) | (((highs >> (4u * h + i)) & 0x01010101u) << 4u)`.

use super::affine::{self, BLOCK};
use super::q4_1;
use super::{BlockTypes, Codes, Format, Minimum, PlaneSpec, Q6K, Unrepresentable, half_at, push_nibbles};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 6 bits a weight.
#[derive(Debug)]
pub struct Q5_1;

const TOP: f32 = 31.0;

impl Format for Q5_1 {
    fn name(&self) -> &'static str {
        "q5_1"
    }

    fn help(&self) -> &'static str {
        "as q5_k with a scale and minimum for every 32 weights"
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        const {
            &[
                PlaneSpec::new("codes", 16, Dtype::U8),
                PlaneSpec::new("highs", 4, Dtype::U8),
                PlaneSpec::new("scales", 4, Dtype::F16),
            ]
        }
    }

    fn codes(&self) -> Codes {
        Codes::Unsigned { bits: 5, minimum: Minimum::Stored }
    }

    fn finer(&self) -> Option<&'static dyn Format> {
        Some(&Q6K)
    }

    fn block_types(&self) -> BlockTypes {
        BlockTypes { read: &[BlockType::Q5_0, BlockType::Q5_1], written: &[BlockType::Q5_1] }
    }

    fn wgsl(&self) -> Option<&'static str> {
        Some(quant_wgsl!("codes5", "q5_1"))
    }

    fn quantize_row(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable> {
        affine::quantize_row(values, importance, TOP, planes, push_codes)
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (index, block) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let pair = (half_at(planes[2], 2 * index), half_at(planes[2], 2 * index + 1));
            block_values(planes, index, pair, block);
        }
    }

    fn push_block(&self, codes: &[i8; 32], scales: [(f32, f32); 2], planes: &mut [Vec<u8>]) -> Result<(), f32> {
        affine::push_pair(scales[0], &mut planes[2])?;
        push_codes(&codes.map(|code| code as u8), planes);
        Ok(())
    }

    /// Q5_1 adds its minimum instead of subtracting it.
    fn write_row(&self, _kind: BlockType, planes: &[&[u8]], out: &mut Vec<u8>) -> Result<(), f32> {
        for (block, scales) in planes[2].as_chunks::<4>().0.iter().enumerate() {
            out.extend_from_slice(&[scales[0], scales[1], scales[2], scales[3] ^ 0x80]);
            write_codes(&codes_at(planes[0], planes[1], block), out);
        }
        Ok(())
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

/// The codes of a block.
pub(super) fn codes_at(codes: &[u8], highs: &[u8], block: usize) -> [u8; BLOCK] {
    let highs = &highs[block * 4..][..4];
    let low = q4_1::codes_at(codes, block);
    std::array::from_fn(|j| low[j] | (highs[high_bit(j) / 8] >> (high_bit(j) % 8) & 1) << 4)
}

/// The weights of a block.
pub(super) fn block_values(planes: &[&[u8]], block: usize, (scale, min): (f32, f32), out: &mut [f32; BLOCK]) {
    for (value, code) in out.iter_mut().zip(codes_at(planes[0], planes[1], block)) {
        *value = scale * f32::from(code) - min;
    }
}

/// Appends the codes of one block in Q5_1's layout, which stores the high bit of code j at bit j.
pub(super) fn write_codes(q: &[u8; BLOCK], out: &mut Vec<u8>) {
    out.extend(q.iter().enumerate().fold(0u32, |word, (j, q)| word | u32::from(q >> 4) << j).to_le_bytes());
    push_nibbles(&q.map(|q| q & 15), out);
}

/// Appends the codes of one block to the planes `codes` and `highs`.
pub(super) fn push_codes(q: &[u8; BLOCK], planes: &mut [Vec<u8>]) {
    push_nibbles(&q.map(|q| q & 15), &mut planes[0]);
    let highs = q.iter().enumerate().fold(0u32, |word, (j, q)| word | u32::from(q >> 4 & 1) << high_bit(j));
    planes[1].extend(highs.to_le_bytes());
}
