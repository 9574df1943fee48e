//! 4-bit groups of 32 with a scale and a minimum of their own: what GGUF's Q4_1 and the 4-bit matrices of AWQ, GPTQ and
//! MLX become.
//!
//! | plane | per 32 weights | content |
//! | --- | --- | --- |
//! | codes | 16 bytes | byte j: low nibble q\[j\], high nibble q\[j + 16\]; one `vec4<u32>` |
//! | scales | 4 bytes | f16 d (low half of the u32), f16 m |
//!
//! weight = d · q − m, q in 0..=15.

use super::affine::{self, BLOCK};
use super::{BlockTypes, Codes, Format, Minimum, PlaneSpec, Q6K, Unrepresentable, half_at, push_nibbles};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 5 bits a weight.
#[derive(Debug)]
pub struct Q4_1;

const TOP: f32 = 15.0;

impl Format for Q4_1 {
    fn name(&self) -> &'static str {
        "q4_1"
    }

    fn help(&self) -> &'static str {
        "as q4_k with a scale and minimum for every 32 weights"
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        const { &[PlaneSpec::new("codes", 16, Dtype::U8), PlaneSpec::new("scales", 4, Dtype::F16)] }
    }

    fn codes(&self) -> Codes {
        Codes::Unsigned { bits: 4, minimum: Minimum::Stored }
    }

    fn finer(&self) -> Option<&'static dyn Format> {
        Some(&Q6K)
    }

    fn block_types(&self) -> BlockTypes {
        BlockTypes { read: &[BlockType::Q4_1], written: &[BlockType::Q4_1] }
    }

    fn wgsl(&self) -> Option<&'static str> {
        Some(quant_wgsl!("codes4", "q4_1"))
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
            let (scale, min) = (half_at(planes[1], 2 * index), half_at(planes[1], 2 * index + 1));
            block_values(planes[0], index, (scale, min), block);
        }
    }

    fn push_block(&self, codes: &[i8; 32], scales: [(f32, f32); 2], planes: &mut [Vec<u8>]) -> Result<(), f32> {
        affine::push_pair(scales[0], &mut planes[1])?;
        push_codes(&codes.map(|code| code as u8), planes);
        Ok(())
    }

    /// Q4_1 adds its minimum instead of subtracting it.
    fn write_row(&self, _kind: BlockType, planes: &[&[u8]], out: &mut Vec<u8>) -> Result<(), f32> {
        for (codes, scales) in planes[0].as_chunks::<16>().0.iter().zip(planes[1].as_chunks::<4>().0) {
            out.extend_from_slice(&[scales[0], scales[1], scales[2], scales[3] ^ 0x80]);
            out.extend_from_slice(codes);
        }
        Ok(())
    }

    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(7.4e-2, 0.95), (5.8e-2, 0.97), (9.6e-2, 0.95)]
    }
}

/// Appends the codes of one block to the plane `codes`.
pub(super) fn push_codes(q: &[u8; BLOCK], planes: &mut [Vec<u8>]) {
    push_nibbles(q, &mut planes[0]);
}

/// The codes of a block.
pub(super) fn codes_at(codes: &[u8], block: usize) -> [u8; BLOCK] {
    let codes = &codes[block * 16..][..16];
    std::array::from_fn(|j| if j < 16 { codes[j] & 15 } else { codes[j - 16] >> 4 })
}

/// The weights of a block.
pub(super) fn block_values(codes: &[u8], block: usize, (scale, min): (f32, f32), out: &mut [f32; BLOCK]) {
    let codes = &codes[block * 16..][..16];
    for (j, &byte) in codes.iter().enumerate() {
        out[j] = scale * f32::from(byte & 15) - min;
        out[j + 16] = scale * f32::from(byte >> 4) - min;
    }
}
