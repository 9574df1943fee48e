//! 5-bit groups of 32 with a minimum: between q4_k and q6_k.
//!
//! | plane | content |
//! | --- | --- |
//! | codes, highs | 20 bytes for 32 weights: as in q5_1 |
//! | scales | 16 bytes for 256 weights: [`SharedScales`]; one `vec4<u32>` |
//!
//! weight = d · q − m, q in 0..=31, with d and m as in q4_k: the numbers of GGUF's Q5_K.

use super::affine::{self, BLOCK, SUPER};
use super::q4_k::write_super_nibbles;
use super::q5_1::{block_values, codes_at, push_codes, write_codes};
use super::{BlockTypes, Codes, Format, Minimum, PlaneSpec, Q6K, SharedScales, Unrepresentable};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 5.5 bits a weight.
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
        const {
            &[
                PlaneSpec::new("codes", 16, Dtype::U8),
                PlaneSpec::new("highs", 4, Dtype::U8),
                PlaneSpec::of_eight("scales", SharedScales::BYTES, 2),
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
        BlockTypes { read: &[BlockType::Q5_K], written: &[BlockType::Q5_K, BlockType::Q5_1] }
    }

    fn wgsl(&self) -> Option<&'static str> {
        Some(quant_wgsl!("codes5", "q5_k"))
    }

    fn quantize_row(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable> {
        affine::quantize_shared_row(values, importance, TOP, planes, push_codes)
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (number, chunk) in out.chunks_mut(SUPER).enumerate() {
            let scales = SharedScales::at(planes[2], number);
            for (index, block) in chunk.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                block_values(planes, number * 8 + index, scales.pair(index), block);
            }
        }
    }

    fn push_super_block(&self, codes: &[i8; SUPER], scales: &SharedScales, planes: &mut [Vec<u8>]) -> Result<(), f32> {
        codes.as_chunks::<BLOCK>().0.iter().for_each(|codes| push_codes(&codes.map(|code| code as u8), planes));
        scales.push(&mut planes[2]);
        Ok(())
    }

    fn write_row(&self, kind: BlockType, planes: &[&[u8]], out: &mut Vec<u8>) -> Result<(), f32> {
        for block in 0..planes[0].len() / 16 {
            let scales = SharedScales::at(planes[2], block / 8);
            if kind == BlockType::Q5_1 {
                let (scale, min) = scales.pair(block % 8);
                affine::push_pair((scale, -min), out)?;
                write_codes(&codes_at(planes[0], planes[1], block), out);
            } else if block % 8 == 0 {
                let codes: [[u8; BLOCK]; 8] =
                    std::array::from_fn(|group| codes_at(planes[0], planes[1], block + group));
                scales.push_gguf(out);
                let highs = |lane: usize| (0..8).fold(0, |byte, group| byte | codes[group][lane] >> 4 << group);
                out.extend((0..BLOCK).map(highs));
                write_super_nibbles(|group| codes[group], out);
            }
        }
        Ok(())
    }

    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(3.7e-2, 0.97), (2.9e-2, 0.98), (4.9e-2, 0.97)]
    }
}
