//! 4-bit groups of 32 with a minimum: the default 4-bit format, 13 % less error than q4_0 on normal weights, 27 % on heavy tails, for half a bit more.
//!
//! | plane | per 32 weights | content |
//! | --- | --- | --- |
//! | codes | 16 bytes | byte j: low nibble q\[j\], high nibble q\[j + 16\]; one `vec4<u32>` |
//! | scales | 4 bytes | f16 d (low half of the u32), f16 m, not negative |
//!
//! weight = d · q − m, q in 0..=15.
//!
//! As in GGUF's Q4_K, the d and m of up to 8 consecutive groups (256 weights; the last of a row may have fewer) are 6-bit
//! multiples of two f16 numbers, so such files map in up to the f16 rounding of the products, and a compact scale plane of
//! 4.5 bits a weight can be added without quantizing again. Only where those numbers are so small that f16 holds fewer than
//! 6 bits of them do the groups keep scales of their own.

use super::search::{block_weights, limit, nearest};
use super::{Format, PlaneSpec, Unrepresentable, half_at, peak_of, push_half, round_half};
use crate::dtype::Dtype;

/// 5 bits a weight.
#[derive(Debug)]
pub struct Q4K;

const BLOCK: usize = 32;
const SUPER: usize = 256;
const LANES: usize = 8;
const TOP: f32 = 15.0;
const STEPS: f32 = 63.0;
/// Below this f16 is subnormal with fewer than 6 significant bits: a poor unit for 63 steps.
const LEAST_UNIT: f32 = 1.0 / 262_144.0;

/// weight = scale · q − min.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Affine {
    pub scale: f32,
    pub min: f32,
}

impl Affine {
    #[inline(always)]
    fn code(self, value: f32, inverse: f32) -> f32 {
        nearest(limit((value + self.min) * inverse, 0.0, TOP))
    }

    #[inline(always)]
    fn inverse(self) -> f32 {
        super::search::invert(self.scale)
    }

    fn error(self, values: &[f32; BLOCK], weights: &[f32; BLOCK]) -> f32 {
        let inverse = self.inverse();
        let mut sum = [0.0f32; LANES];
        for start in (0..BLOCK).step_by(LANES) {
            for lane in 0..LANES {
                let value = values[start + lane];
                let difference = self.scale * self.code(value, inverse) - self.min - value;
                sum[lane] += weights[start + lane] * difference * difference;
            }
        }
        sum.iter().sum()
    }
}

/// Weighted sums over a block for codes on one grid.
#[derive(Default)]
struct Sums {
    q: f32,
    qq: f32,
    wq: f32,
}

fn sums(values: &[f32; BLOCK], weights: &[f32; BLOCK], grid: Affine) -> Sums {
    let inverse = grid.inverse();
    let (mut q1, mut q2, mut wq) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
    for start in (0..BLOCK).step_by(LANES) {
        for lane in 0..LANES {
            let value = values[start + lane];
            let q = grid.code(value, inverse);
            let iq = weights[start + lane] * q;
            q1[lane] += iq;
            q2[lane] += iq * q;
            wq[lane] += iq * value;
        }
    }
    Sums { q: q1.iter().sum(), qq: q2.iter().sum(), wq: wq.iter().sum() }
}

/// The grid with the least weighted squared error: about twenty ranges around `low..high` are tried, each followed by the
/// closed-form best scale and minimum for its codes.
pub(super) fn best_affine(values: &[f32; BLOCK], weights: &[f32; BLOCK]) -> Affine {
    let low = values.iter().copied().fold(0.0f32, f32::min);
    let high = values.iter().copied().fold(low, f32::max);
    let plain = Affine { scale: (high - low) / TOP, min: -low };
    if plain.scale == 0.0 {
        return plain;
    }
    let (mut total, mut linear, mut square) = (0.0f32, 0.0f32, 0.0f32);
    for (value, weight) in values.iter().zip(weights) {
        total += weight;
        linear += weight * value;
        square += weight * value * value;
    }
    let (mut best, mut best_error) = (plain, plain.error(values, weights));
    for step in -8..=11 {
        let grid = Affine { scale: (high - low) / (TOP + 0.1 * step as f32), min: -low };
        let s = sums(values, weights, grid);
        let determinant = total * s.qq - s.q * s.q;
        if determinant <= 0.0 {
            continue;
        }
        let scale = (total * s.wq - linear * s.q) / determinant;
        let offset = (s.qq * linear - s.q * s.wq) / determinant;
        let (fit, error) = if offset <= 0.0 {
            (Affine { scale, min: -offset }, square - scale * s.wq - offset * linear)
        } else {
            (Affine { scale: s.wq / s.qq, min: 0.0 }, square - s.wq * s.wq / s.qq)
        };
        if fit.scale > 0.0 && error < best_error {
            (best, best_error) = (fit, error);
        }
    }
    best
}

/// Rounds the grids of one super-block to 6-bit multiples of two f16 numbers, then tries the neighbouring multiples of each.
/// `None` when a number overflows f16.
fn shared_grids(blocks: &[[f32; BLOCK]], weights: &[[f32; BLOCK]]) -> Option<Vec<Affine>> {
    let free: Vec<Affine> = blocks.iter().zip(weights).map(|(block, weight)| best_affine(block, weight)).collect();
    let unit = |of: fn(&Affine) -> f32| round_half(free.iter().map(of).fold(0.0, f32::max) / STEPS);
    let (scale_unit, min_unit) = (unit(|grid| grid.scale)?, unit(|grid| grid.min)?);
    if scale_unit < LEAST_UNIT || (min_unit < LEAST_UNIT && free.iter().any(|grid| grid.min > 0.0)) {
        let rounded = |grid: &Affine| Some(Affine { scale: round_half(grid.scale)?, min: round_half(grid.min)? });
        return free.iter().map(rounded).collect();
    }
    let steps = |value: f32, unit: f32| if unit == 0.0 { 0.0 } else { (value / unit).round().min(STEPS) };
    let mut grids = Vec::with_capacity(blocks.len());
    for ((block, weight), grid) in blocks.iter().zip(weights).zip(&free) {
        let (scale_steps, min_steps) = (steps(grid.scale, scale_unit), steps(grid.min, min_unit));
        let mut best: Option<(Affine, f32)> = None;
        for scale_change in [0.0, -1.0, 1.0] {
            for min_change in [0.0, -1.0, 1.0] {
                let candidate = Affine {
                    scale: round_half(scale_unit * limit(scale_steps + scale_change, 0.0, STEPS))?,
                    min: round_half(min_unit * limit(min_steps + min_change, 0.0, STEPS))?,
                };
                let error = candidate.error(block, weight);
                if best.is_none_or(|(_, least)| error < least) {
                    best = Some((candidate, error));
                }
            }
        }
        grids.extend(best.map(|(grid, _)| grid));
    }
    Some(grids)
}

impl Format for Q4K {
    fn name(&self) -> &'static str {
        "q4_k"
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        &[PlaneSpec { name: "codes", bytes_per_block: 16, dtype: Dtype::U8 }, PlaneSpec { name: "scales", bytes_per_block: 4, dtype: Dtype::F16 }]
    }

    fn quantize_row(&self, values: &[f32], importance: Option<&[f32]>, planes: &mut [Vec<u8>]) -> Result<(), Unrepresentable> {
        for (number, chunk) in values.chunks(SUPER).enumerate() {
            let start = number * SUPER;
            let blocks = chunk.as_chunks::<BLOCK>().0;
            let weights: Vec<[f32; BLOCK]> = (0..blocks.len()).map(|i| block_weights(importance, start + i * BLOCK)).collect();
            let Some(grids) = shared_grids(blocks, &weights) else {
                let peak = peak_of(chunk);
                return Err(Unrepresentable { index: start + peak.index, ..peak });
            };
            for (block, grid) in blocks.iter().zip(grids) {
                let inverse = grid.inverse();
                let q = |j: usize| grid.code(block[j], inverse) as u8;
                planes[0].extend((0..16).map(|j| q(j) | q(j + 16) << 4));
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
}
