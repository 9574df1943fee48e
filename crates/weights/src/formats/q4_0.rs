//! 4-bit symmetric groups of 32: the smallest format, with the cheapest unpacking.
//!
//! | plane | per 32 weights | content |
//! | --- | --- | --- |
//! | codes | 16 bytes | byte j: low nibble q\[j\], high nibble q\[j + 16\]; one `vec4<u32>` |
//! | scales | 2 bytes | f16 d, of either sign |
//!
//! weight = d · (q − 8), q in 0..=15.

use super::search::{Levels, best_scale, block_weights, code, invert};
use super::{
    BlockTypes, Codes, Format, Minimum, PlaneSpec, Q8_0, Unrepresentable, half_at, peak_of, push_half, push_nibbles,
    round_half,
};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 4.5 bits a weight.
#[derive(Debug)]
pub struct Q4_0;

const BLOCK: usize = 32;
const LEVELS: Levels = Levels { low: -8.0, high: 7.0 };

impl Format for Q4_0 {
    fn name(&self) -> &'static str {
        "q4_0"
    }

    fn help(&self) -> &'static str {
        "fastest to unpack"
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        const { &[PlaneSpec::new("codes", 16, Dtype::U8), PlaneSpec::new("scales", 2, Dtype::F16)] }
    }

    fn codes(&self) -> Codes {
        Codes::Unsigned { bits: 4, minimum: Minimum::Centred(8) }
    }

    fn finer(&self) -> Option<&'static dyn Format> {
        Some(&Q8_0)
    }

    fn block_types(&self) -> BlockTypes {
        BlockTypes { read: &[BlockType::Q4_0], written: &[BlockType::Q4_0] }
    }

    fn wgsl(&self) -> Option<&'static str> {
        Some(quant_wgsl!("codes4", "q4_0"))
    }

    fn quantize_row(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable> {
        for (index, block) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
            let weights = block_weights::<BLOCK>(importance, index * BLOCK);
            let Some(scale) = best_scale(block, &weights, LEVELS) else {
                let peak = peak_of(block);
                return Err(Unrepresentable { index: index * BLOCK + peak.index, ..peak });
            };
            let inverse = invert(scale);
            let q = |j: usize| (code(block[j], inverse, LEVELS) + 8.0) as u8;
            planes[0].extend((0..16).map(|j| q(j) | q(j + 16) << 4));
            push_half(&mut planes[1], scale);
        }
        Ok(())
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (index, block) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let scale = half_at(planes[1], index);
            let codes = &planes[0][index * 16..][..16];
            for (j, &byte) in codes.iter().enumerate() {
                block[j] = scale * (f32::from(byte & 15) - 8.0);
                block[j + 16] = scale * (f32::from(byte >> 4) - 8.0);
            }
        }
    }

    fn push_block(&self, codes: &[i8; 32], scales: [(f32, f32); 2], planes: &mut [Vec<u8>]) -> Result<(), f32> {
        let scale = round_half(scales[0].0).ok_or(scales[0].0)?;
        push_nibbles(&codes.map(|code| (code + 8) as u8), &mut planes[0]);
        push_half(&mut planes[1], scale);
        Ok(())
    }

    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(9e-2, 0.97), (8e-2, 0.98), (13e-2, 0.97)]
    }
}
