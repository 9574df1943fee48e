//! 4-bit groups of 32 with a minimum: the default 4-bit format. Its error is 13 % less than that of q4_0 on normal
//! weights and 27 % less on heavy tails, for half a bit more.
//!
//! | plane | per 32 weights | content |
//! | --- | --- | --- |
//! | codes | 16 bytes | byte j: low nibble q\[j\], high nibble q\[j + 16\]; one `vec4<u32>` |
//! | scales | 4 bytes | f16 d (low half of the u32), f16 m, not negative |
//!
//! weight = d · q − m, q in 0..=15.
//!
//! As in GGUF's Q4_K, the d and m of up to 8 consecutive groups (256 weights; the last of a row may have fewer) are
//! 6-bit multiples of two f16 numbers. Such files are therefore read without change but for the f16 rounding of the
//! products, and a compact scale plane of 4.5 bits a weight can be added without quantizing again. Groups keep
//! independent scales only where those two numbers are so small that f16 holds fewer than 6 bits of them.

use super::affine::{BLOCK, SUPER, shared_grids};
use super::search::block_weights;
use super::{
    BlockTypes, Codes, Format, Minimum, PlaneSpec, Q6K, Unrepresentable, half_at, peak_of, push_half, push_nibbles,
    round_half,
};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 5 bits a weight.
#[derive(Debug)]
pub struct Q4K;

const TOP: f32 = 15.0;

impl Format for Q4K {
    fn name(&self) -> &'static str {
        "q4_k"
    }

    fn help(&self) -> &'static str {
        "the usual choice"
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        &[
            PlaneSpec { name: "codes", bytes_per_block: 16, dtype: Dtype::U8 },
            PlaneSpec { name: "scales", bytes_per_block: 4, dtype: Dtype::F16 },
        ]
    }

    fn codes(&self) -> Codes {
        Codes::Unsigned { bits: 4, minimum: Minimum::Stored }
    }

    fn finer(&self) -> Option<&'static dyn Format> {
        Some(&Q6K)
    }

    fn block_types(&self) -> BlockTypes {
        BlockTypes { read: &[BlockType::Q4_1, BlockType::Q4_K], written: BlockType::Q4_1 }
    }

    fn wgsl(&self) -> Option<&'static str> {
        Some(quant_wgsl!("q4_k"))
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
                push_nibbles(&block.map(|value| grid.code(value, inverse, TOP) as u8), &mut planes[0]);
                push_half(&mut planes[1], grid.scale);
                push_half(&mut planes[1], grid.min);
            }
        }
        Ok(())
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (index, block) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let (scale, min) = (half_at(planes[1], 2 * index), half_at(planes[1], 2 * index + 1));
            let codes = &planes[0][index * 16..][..16];
            for (j, &byte) in codes.iter().enumerate() {
                block[j] = scale * f32::from(byte & 15) - min;
                block[j + 16] = scale * f32::from(byte >> 4) - min;
            }
        }
    }

    fn push_block(&self, codes: &[i8; 32], scales: [(f32, f32); 2], planes: &mut [Vec<u8>]) -> Result<(), f32> {
        let (scale, min) = scales[0];
        let (scale, min) = (round_half(scale).ok_or(scale)?, round_half(min).ok_or(min)?);
        push_nibbles(&codes.map(|code| code as u8), &mut planes[0]);
        push_half(&mut planes[1], scale);
        push_half(&mut planes[1], min);
        Ok(())
    }

    /// Q4_1 adds its minimum instead of subtracting it.
    fn write_block(&self, parts: &[&[u8]], out: &mut Vec<u8>) {
        let (codes, scales) = (parts[0], parts[1]);
        out.extend_from_slice(&[scales[0], scales[1], scales[2], scales[3] ^ 0x80]);
        out.extend_from_slice(codes);
    }

    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(7.4e-2, 0.95), (5.8e-2, 0.97), (9.6e-2, 0.95)]
    }
}
