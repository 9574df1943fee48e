//! Inputs of a product, rounded to 8 bits in blocks of 32, as [`crate::ops::Quantize`] does on GPUs.

use std::ops::Range;

use super::simd::by_level;
use super::{Cpu, Shared};

const BLOCK: usize = 32;

/// Rounded rows, padded with zeros to whole blocks.
pub(crate) struct Activations {
    /// Codes within ±127 [T, blocks, 32].
    pub codes: Vec<i8>,
    /// For each block: scale, then the scale times the sum of the first 16 codes, of the others, and of all
    /// [T, blocks, 4].
    pub scales: Vec<f32>,
    /// Blocks of a row.
    pub blocks: usize,
}

/// Rows of one thread at least.
const LEAST_BLOCKS: usize = 512;

impl Activations {
    /// Rounds the rows of x [T, K].
    pub(crate) fn of(cpu: &Cpu, x: &[f32], width: usize) -> Activations {
        let (rows, blocks) = (x.len() / width, width.div_ceil(BLOCK));
        let mut codes = vec![0i8; rows * blocks * BLOCK];
        let mut scales = vec![0f32; rows * blocks * 4];
        let (to_codes, to_scales) = (Shared::new(&mut codes), Shared::new(&mut scales));
        cpu.split(rows, (LEAST_BLOCKS / blocks).max(1), |range: Range<usize>| {
            // SAFETY: every range of rows is written by one call.
            let (codes, scales) = unsafe {
                let part = |each: usize| range.start * blocks * each..range.end * blocks * each;
                (to_codes.part(part(BLOCK)), to_scales.part(part(4)))
            };
            let rows = &x[range.start * width..range.end * width];
            round(cpu.level(), rows, width, codes, scales);
        });
        Activations { codes, scales, blocks }
    }
}

by_level! {
    fn round<S>(rows: &[f32], width: usize, codes: &mut [i8], scales: &mut [f32]) {
        let blocks = width.div_ceil(BLOCK);
        for (row, x) in rows.chunks_exact(width).enumerate() {
            for block in 0..blocks {
                let part = &x[block * BLOCK..width.min((block + 1) * BLOCK)];
                let number = row * blocks + block;
                let codes = &mut codes[number * BLOCK..][..BLOCK];
                let scales = &mut scales[number * 4..][..4];
                if let Ok(whole) = part.try_into() {
                    round_block(whole, codes, scales);
                } else {
                    let mut whole = [0f32; BLOCK];
                    whole[..part.len()].copy_from_slice(part);
                    round_block(&whole, codes, scales);
                }
            }
        }
    }
}

#[inline(always)]
fn round_block(x: &[f32; BLOCK], codes: &mut [i8], scales: &mut [f32]) {
    let mut peaks = [0f32; 8];
    for eight in x.chunks_exact(8) {
        for (peak, &value) in peaks.iter_mut().zip(eight) {
            *peak = if value.abs() > *peak { value.abs() } else { *peak };
        }
    }
    let peak = peaks.iter().fold(0f32, |a, &b| if b > a { b } else { a });
    let inverse = if peak == 0.0 { 0.0 } else { 127.0 / peak };
    let scale = peak / 127.0;
    let mut sums = [0i32; 2];
    for (half, sum) in sums.iter_mut().enumerate() {
        for (code, &value) in codes[half * 16..][..16].iter_mut().zip(&x[half * 16..][..16]) {
            let rounded = (value * inverse).round_ties_even() as i32;
            *code = rounded as i8;
            *sum += rounded;
        }
    }
    let [first, second] = sums.map(|sum| scale * sum as f32);
    scales.copy_from_slice(&[scale, first, second, scale * (sums[0] + sums[1]) as f32]);
}
