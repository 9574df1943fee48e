//! 8-bit symmetric groups of 32: the nearly lossless format, and the default for embeddings beside q4_0.
//!
//! | plane | per 32 weights | content |
//! | --- | --- | --- |
//! | codes | 32 bytes | byte j = q\[j\] as i8, −127..=127; two `vec4<u32>`, ready for packed int8 dot products |
//! | scales | 2 bytes | f16 d |
//!
//! weight = d · q.

use super::search::{Levels, best_scale, block_weights, code, invert};
use super::{BlockTypes, Codes, Format, PlaneSpec, Unrepresentable, half_at, peak_of, push_half, round_half};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 8.5 bits a weight.
#[derive(Debug)]
pub struct Q8_0;

const BLOCK: usize = 32;
const LEVELS: Levels = Levels { low: -127.0, high: 127.0 };

impl Format for Q8_0 {
    fn name(&self) -> &'static str {
        "q8_0"
    }

    fn help(&self) -> &'static str {
        "nearly lossless"
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        const { &[PlaneSpec::new("codes", 32, Dtype::I8), PlaneSpec::new("scales", 2, Dtype::F16)] }
    }

    fn codes(&self) -> Codes {
        Codes::Signed { top: 127 }
    }

    fn block_types(&self) -> BlockTypes {
        BlockTypes { read: &[BlockType::Q8_0, BlockType::Q2_K, BlockType::MXFP4], written: &[BlockType::Q8_0] }
    }

    fn wgsl(&self) -> Option<&'static str> {
        Some(quant_wgsl!("q8_0"))
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
            planes[0].extend(block.iter().map(|&value| code(value, inverse, LEVELS) as i8 as u8));
            push_half(&mut planes[1], scale);
        }
        Ok(())
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (index, block) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let scale = half_at(planes[1], index);
            let codes = &planes[0][index * BLOCK..][..BLOCK];
            for (value, &q) in block.iter_mut().zip(codes) {
                *value = scale * f32::from(q as i8);
            }
        }
    }

    fn push_block(&self, codes: &[i8; 32], scales: [(f32, f32); 2], planes: &mut [Vec<u8>]) -> Result<(), f32> {
        // If all codes are zero the scale is not needed, whatever it is.
        let scale = if codes.iter().all(|&code| code == 0) { 0.0 } else { scales[0].0 };
        let scale = round_half(scale).ok_or(scale)?;
        planes[0].extend(codes.map(|code| code as u8));
        push_half(&mut planes[1], scale);
        Ok(())
    }

    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(6e-3, 0.999), (5e-3, 0.999), (9e-3, 0.995)]
    }
}
