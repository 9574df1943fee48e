//! 6-bit symmetric groups of 16: for embeddings and output heads beside q4_k, where 4 bits visibly reduce quality.
//!
//! | plane | per 32 weights | content |
//! | --- | --- | --- |
//! | codes | 16 bytes | low 4 bits: byte j: low nibble of q\[j\], high nibble of q\[j + 16\]; one `vec4<u32>` |
//! | highs | 8 bytes | high 2 bits: two u32; q\[16·h + 4·i + b\] is in word h at bit 8·b + 2·i |
//! | scales | 18 bytes for 256 weights | [`StepScales`] |
//!
//! weight = d · (q − 32), q in 0..=63, with d of each 16 weights as a multiple of an f16 number: the numbers of GGUF's
//! Q6_K, which is read and written without change, and of Q3_K.
//!
//! The high bits are arranged so that four codes are unpacked at once as the four bytes of a word, for i in 0..4:
//!
//! ```wgsl
//! let first  = (codes\[i\] & 0x0f0f0f0fu)         | (((highs\[0\] >> (2u * i)) & 0x03030303u) << 4u); // 4i ..
//! let second = ((codes\[i\] >> 4u) & 0x0f0f0f0fu) | (((highs\[1\] >> (2u * i)) & 0x03030303u) << 4u); // 16 + 4i ..
//! ```
//!
//! Rejected: an f16 scale for each 16 weights, which takes 7 bits a weight for 1 % less error.

use super::search::{Levels, best_scale, block_weights, code, error, invert};
use super::{
    BlockTypes, Codes, Format, Minimum, PlaneSpec, StepScales, Unrepresentable, peak_of, push_half, push_nibbles,
    rounded_unit,
};
use crate::dtype::Dtype;
use crate::gguf::block_type::BlockType;

/// 6.5625 bits a weight.
#[derive(Debug)]
pub struct Q6K;

const BLOCK: usize = 32;
const GROUP: usize = 16;
const SUPER: usize = 256;
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
                PlaneSpec::of_eight("scales", StepScales::BYTES, 1).apart(StepScales::UNIT_BYTES),
            ]
        }
    }

    fn codes(&self) -> Codes {
        Codes::Unsigned { bits: 6, minimum: Minimum::Centred(32) }
    }

    fn block_types(&self) -> BlockTypes {
        BlockTypes { read: &[BlockType::Q6_K, BlockType::Q3_K], written: &[BlockType::Q6_K] }
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
        for (number, chunk) in values.chunks(SUPER).enumerate() {
            let scales = scales_of(chunk, importance, number * SUPER)?;
            let mut q = [0u8; SUPER];
            for (group, values) in chunk.as_chunks::<GROUP>().0.iter().enumerate() {
                let inverse = invert(scales.scale(group));
                for (q, &value) in q[group * GROUP..].iter_mut().zip(values) {
                    *q = (code(value, inverse, LEVELS) + 32.0) as u8;
                }
            }
            q.as_chunks::<BLOCK>().0.iter().take(chunk.len() / BLOCK).for_each(|block| push_codes(block, planes));
            scales.push(&mut planes[2]);
        }
        Ok(())
    }

    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]) {
        for (number, chunk) in out.chunks_mut(SUPER).enumerate() {
            let scales = StepScales::at(planes[2], number);
            for (index, block) in chunk.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                let codes = codes_at(planes, number * 8 + index);
                for (j, (value, code)) in block.iter_mut().zip(codes).enumerate() {
                    *value = scales.scale(2 * index + j / GROUP) * (f32::from(code) - 32.0);
                }
            }
        }
    }

    fn push_stepped(&self, codes: &[i8; SUPER], scales: &StepScales, planes: &mut [Vec<u8>]) -> Result<(), f32> {
        let blocks = codes.as_chunks::<BLOCK>().0.iter();
        blocks.for_each(|codes| push_codes(&codes.map(|code| (code + 32) as u8), planes));
        scales.push(&mut planes[2]);
        Ok(())
    }

    fn write_row(&self, _kind: BlockType, planes: &[&[u8]], out: &mut Vec<u8>) -> Result<(), f32> {
        for number in 0..planes[2].len() / StepScales::BYTES {
            let codes: [[u8; BLOCK]; 8] = std::array::from_fn(|block| codes_at(planes, number * 8 + block));
            for half in codes.as_chunks::<4>().0 {
                // Blocks 0 and 2 share 32 bytes, blocks 1 and 3 the next.
                for (low, high) in [(half[0], half[2]), (half[1], half[3])] {
                    out.extend(low.iter().zip(high).map(|(low, high)| low & 15 | high << 4));
                }
            }
            for half in codes.as_chunks::<4>().0 {
                let bits = |lane: usize| (0..4).fold(0, |byte, block| byte | half[block][lane] >> 4 << (2 * block));
                out.extend((0..BLOCK).map(bits));
            }
            let scales = StepScales::at(planes[2], number);
            out.extend(scales.steps.map(|step| step as u8));
            push_half(out, scales.unit);
        }
        Ok(())
    }

    #[cfg(test)]
    fn error_limits(&self) -> [(f64, f64); 3] {
        [(2e-2, 0.98), (1.8e-2, 0.99), (2.8e-2, 0.98)]
    }
}

/// Multiples that are tried on either side of the nearest one.
const NEIGHBOURS: [f32; 5] = [0.0, -1.0, 1.0, -2.0, 2.0];

/// The scales of up to 256 weights, the first of which is number `start` of the row.
fn scales_of(chunk: &[f32], importance: Option<&[f32]>, start: usize) -> Result<StepScales, Unrepresentable> {
    let groups = chunk.as_chunks::<GROUP>().0;
    let mut free = [0.0f32; SUPER / GROUP];
    for (index, (scale, values)) in free.iter_mut().zip(groups).enumerate() {
        let weights = block_weights::<GROUP>(importance, start + index * GROUP);
        *scale = best_scale(values, &weights, LEVELS).ok_or_else(|| {
            let peak = peak_of(values);
            Unrepresentable { index: start + index * GROUP + peak.index, ..peak }
        })?;
    }
    // The largest scale is −128 units, as that range is one wider.
    let largest = peak_of(&free).value;
    let unit = rounded_unit(largest.abs() / 128.0).map_or(0.0, |unit| -unit.copysign(largest));
    let mut scales = StepScales { unit, steps: [0; 16] };
    for (index, values) in groups.iter().enumerate().filter(|_| unit != 0.0) {
        let weights = block_weights::<GROUP>(importance, start + index * GROUP);
        let nearest = (free[index] / unit).round();
        let mut least = f32::INFINITY;
        for change in NEIGHBOURS {
            let step = (nearest + change).clamp(-128.0, 127.0);
            let error = error(values, &weights, unit * step, LEVELS);
            if error < least {
                least = error;
                scales.steps[index] = step as i8;
            }
        }
    }
    Ok(scales)
}

/// The codes (0..=63) of a block of a row.
fn codes_at(planes: &[&[u8]], block: usize) -> [u8; BLOCK] {
    let (codes, highs) = (&planes[0][block * 16..][..16], &planes[1][block * 8..][..8]);
    std::array::from_fn(|j| {
        let low = if j < 16 { codes[j] & 15 } else { codes[j - 16] >> 4 };
        let (word, bit) = high_place(j);
        low | (highs[word * 4 + bit / 8] >> (bit % 8) & 3) << 4
    })
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
