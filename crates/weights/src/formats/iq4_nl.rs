//! 4-bit groups of 32 on 16 unevenly spaced levels, denser near zero, where most weights are: llama.cpp's IQ4_NL.
//!
//! | plane | per 32 weights | content |
//! | --- | --- | --- |
//! | codes | 16 bytes | byte j: low nibble q\[j\], high nibble q\[j + 16\]; one `vec4<u32>` |
//! | scales | 2 bytes | f16 d, of either sign |
//!
//! weight = d · LEVELS\[q\], q in 0..=15. No level is zero: a zero in a block with large weights becomes a small
//! number.

use super::search::{Grid, best_scale, block_weights, invert};
use super::{
    BlockTypes, Codes, Format, PlaneSpec, Q6K, Unrepresentable, half_at, peak_of, push_half, push_nibbles, round_half,
};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 4.5 bits a weight.
#[derive(Debug)]
pub struct Iq4Nl;

const BLOCK: usize = 32;

/// The levels of llama.cpp's IQ4 types, which are part of its file format.
pub(crate) const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The midpoint between each level and the next.
const MIDDLES: [f32; 15] = {
    let (mut middles, mut i) = ([0.0; 15], 0);
    while i < 15 {
        middles[i] = (LEVELS[i] as f32 + LEVELS[i + 1] as f32) / 2.0;
        i += 1;
    }
    middles
};

fn code(x: f32) -> u8 {
    MIDDLES.iter().map(|&middle| u8::from(x > middle)).sum()
}

#[derive(Clone, Copy)]
struct Uneven;

impl Grid for Uneven {
    /// A sum of comparisons instead of a table look-up, so that compilers vectorize it.
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        let mut level = f32::from(LEVELS[0]);
        for (i, &middle) in MIDDLES.iter().enumerate() {
            level += if x > middle { f32::from(LEVELS[i + 1]) - f32::from(LEVELS[i]) } else { 0.0 };
        }
        level
    }

    fn plain(self) -> f32 {
        f32::from(LEVELS[0])
    }

    /// Both signs of the scale: the levels are not symmetric, and trying both reduces the error on normal weights by
    /// 1.5 %.
    fn ends(self) -> impl Iterator<Item = f32> {
        let near = |level: i8, outwards: f32| (-3..=4).map(move |step| f32::from(level) + outwards * step as f32);
        near(LEVELS[0], -5.0).chain(near(LEVELS[15], 5.0))
    }
}

impl Format for Iq4Nl {
    fn name(&self) -> &'static str {
        "iq4_nl"
    }

    fn help(&self) -> &'static str {
        "closer than q4_0 in the same size; slower to unpack"
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        const { &[PlaneSpec::new("codes", 16, Dtype::U8), PlaneSpec::new("scales", 2, Dtype::F16)] }
    }

    fn codes(&self) -> Codes {
        Codes::Table(&LEVELS)
    }

    fn finer(&self) -> Option<&'static dyn Format> {
        Some(&Q6K)
    }

    fn block_types(&self) -> BlockTypes {
        // IQ4_XS has the same levels; the scale of each block is a 6-bit integer times an f16.
        BlockTypes { read: &[BlockType::IQ4_NL, BlockType::IQ4_XS], written: &[BlockType::IQ4_NL] }
    }

    fn wgsl(&self) -> Option<&'static str> {
        Some(quant_wgsl!("iq4_nl"))
    }

    fn quantize_row(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable> {
        for (index, block) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
            let weights = block_weights::<BLOCK>(importance, index * BLOCK);
            let Some(scale) = best_scale(block, &weights, Uneven) else {
                let peak = peak_of(block);
                return Err(Unrepresentable { index: index * BLOCK + peak.index, ..peak });
            };
            let inverse = invert(scale);
            push_nibbles(&block.map(|value| code(value * inverse)), &mut planes[0]);
            push_half(&mut planes[1], scale);
        }
        Ok(())
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (index, block) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let scale = half_at(planes[1], index);
            let codes = &planes[0][index * 16..][..16];
            for (j, &byte) in codes.iter().enumerate() {
                block[j] = scale * f32::from(LEVELS[usize::from(byte & 15)]);
                block[j + 16] = scale * f32::from(LEVELS[usize::from(byte >> 4)]);
            }
        }
    }

    fn push_block(&self, codes: &[i8; 32], scales: [(f32, f32); 2], planes: &mut [Vec<u8>]) -> Result<(), f32> {
        let scale = round_half(scales[0].0).ok_or(scales[0].0)?;
        push_nibbles(&codes.map(|level| code(f32::from(level))), &mut planes[0]);
        push_half(&mut planes[1], scale);
        Ok(())
    }

    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(7.7e-2, 0.96), (6.6e-2, 0.95), (10.2e-2, 0.99)]
    }
}
