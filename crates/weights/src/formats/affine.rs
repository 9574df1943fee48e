//! The search for scales and minima: `weight = scale · q − min`, q in 0..=`TOP`. q4_1 and q5_1 have a pair for each
//! block; in q4_k and q5_k up to 8 blocks have multiples of two numbers ([`SharedScales`]).

use super::search::{limit, nearest, sized_weights};
use super::{SharedScales, Unrepresentable, peak_of, push_half, round_half, rounded_unit};

pub(super) const BLOCK: usize = 32;
pub(super) const SUPER: usize = 256;
const LANES: usize = 8;
const STEPS: f32 = 63.0;

/// Appends the codes of one block to the planes before the scales.
type PushCodes = fn(&[u8; BLOCK], &mut [Vec<u8>]);

/// weight = scale · q − min.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Affine {
    pub scale: f32,
    pub min: f32,
}

impl Affine {
    #[inline(always)]
    pub(super) fn code(self, value: f32, inverse: f32, top: f32) -> f32 {
        nearest(limit((value + self.min) * inverse, 0.0, top))
    }

    #[inline(always)]
    pub(super) fn inverse(self) -> f32 {
        super::search::invert(self.scale)
    }

    /// The codes of a block.
    fn codes(self, block: &[f32; BLOCK], top: f32) -> [u8; BLOCK] {
        let inverse = self.inverse();
        block.map(|value| self.code(value, inverse, top) as u8)
    }

    fn error(self, values: &[f32; BLOCK], weights: &[f32; BLOCK], top: f32) -> f32 {
        let inverse = self.inverse();
        let mut sum = [0.0f32; LANES];
        for start in (0..BLOCK).step_by(LANES) {
            for lane in 0..LANES {
                let value = values[start + lane];
                let difference = self.scale * self.code(value, inverse, top) - self.min - value;
                sum[lane] += weights[start + lane] * difference * difference;
            }
        }
        sum.iter().sum()
    }
}

/// Weighted sums over a block for the codes of one grid.
#[derive(Default)]
struct Sums {
    q: f32,
    qq: f32,
    wq: f32,
}

fn sums(values: &[f32; BLOCK], weights: &[f32; BLOCK], grid: Affine, top: f32) -> Sums {
    let inverse = grid.inverse();
    let (mut q1, mut q2, mut wq) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
    for start in (0..BLOCK).step_by(LANES) {
        for lane in 0..LANES {
            let value = values[start + lane];
            let q = grid.code(value, inverse, top);
            let iq = weights[start + lane] * q;
            q1[lane] += iq;
            q2[lane] += iq * q;
            wq[lane] += iq * value;
        }
    }
    Sums { q: q1.iter().sum(), qq: q2.iter().sum(), wq: wq.iter().sum() }
}

/// The grid with the least weighted squared error: about twenty ranges around `low..high` are tried, each followed by
/// the closed-form best scale and minimum for its codes. `measured`: the weights are an importance that was measured.
pub(super) fn best_affine(values: &[f32; BLOCK], weights: &[f32; BLOCK], top: f32, measured: bool) -> Affine {
    let low = values.iter().copied().fold(0.0f32, f32::min);
    let high = values.iter().copied().fold(low, f32::max);
    let plain = Affine { scale: (high - low) / top, min: -low };
    if plain.scale == 0.0 {
        return plain;
    }
    let (mut total, mut linear, mut square) = (0.0f32, 0.0f32, 0.0f32);
    for (value, weight) in values.iter().zip(weights) {
        total += weight;
        linear += weight * value;
        square += weight * value * value;
    }
    // The best scale and minimum for the codes of a grid, and their error.
    let fit = |grid: Affine| -> Option<(Affine, f32)> {
        let s = sums(values, weights, grid, top);
        let determinant = total * s.qq - s.q * s.q;
        if determinant <= 0.0 {
            return None;
        }
        let scale = (total * s.wq - linear * s.q) / determinant;
        let offset = (s.qq * linear - s.q * s.wq) / determinant;
        let (fit, error) = if offset <= 0.0 {
            (Affine { scale, min: -offset }, square - scale * s.wq - offset * linear)
        } else {
            (Affine { scale: s.wq / s.qq, min: 0.0 }, square - s.wq * s.wq / s.qq)
        };
        (fit.scale > 0.0).then_some((fit, error))
    };
    let (mut best, mut best_error) = (plain, plain.error(values, weights, top));
    let mut try_grid = |grid: Affine, best_error: &mut f32| {
        if let Some((grid, error)) = fit(grid).filter(|(_, error)| *error < *best_error) {
            (best, *best_error) = (grid, error);
        }
    };
    // With importance the range need not include the smallest weights either.
    let lows: &[f32] = if measured { &[1.0, 0.92, 0.84, 0.76] } else { &[1.0] };
    for factor in lows {
        for step in -8..=11 {
            try_grid(
                Affine { scale: (high - low * factor) / (top + 0.1 * step as f32), min: -low * factor },
                &mut best_error,
            );
        }
    }
    best
}

/// Appends a pair as two f16 numbers; fails with the number that f16 cannot hold.
pub(super) fn push_pair((scale, min): (f32, f32), out: &mut Vec<u8>) -> Result<(), f32> {
    let (scale, min) = (round_half(scale).ok_or(scale)?, round_half(min).ok_or(min)?);
    push_half(out, scale);
    push_half(out, min);
    Ok(())
}

/// Quantizes a row whose blocks have a scale and a minimum each, in the last plane.
pub(super) fn quantize_row(
    values: &[f32],
    importance: Option<&[f32]>,
    top: f32,
    planes: &mut [Vec<u8>],
    push_codes: PushCodes,
) -> Result<(), Unrepresentable> {
    for (index, block) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
        let weights = sized_weights(importance, index * BLOCK, block);
        let free = best_affine(block, &weights, top, importance.is_some());
        let (Some(scale), Some(min)) = (round_half(free.scale), round_half(free.min)) else {
            let peak = peak_of(block);
            return Err(Unrepresentable { index: index * BLOCK + peak.index, ..peak });
        };
        let grid = Affine { scale, min };
        push_codes(&grid.codes(block, top), planes);
        let Some(scales) = planes.last_mut() else { continue };
        push_half(scales, grid.scale);
        push_half(scales, grid.min);
    }
    Ok(())
}

/// Quantizes a row whose blocks share scales, 8 at a time, in the last plane.
pub(super) fn quantize_shared_row(
    values: &[f32],
    importance: Option<&[f32]>,
    top: f32,
    planes: &mut [Vec<u8>],
    push_codes: PushCodes,
) -> Result<(), Unrepresentable> {
    for (number, chunk) in values.chunks(SUPER).enumerate() {
        let start = number * SUPER;
        let blocks = chunk.as_chunks::<BLOCK>().0;
        let weights: Vec<[f32; BLOCK]> =
            blocks.iter().enumerate().map(|(i, block)| sized_weights(importance, start + i * BLOCK, block)).collect();
        let Some(shared) = shared_scales(blocks, &weights, top, importance.is_some()) else {
            let peak = peak_of(chunk);
            return Err(Unrepresentable { index: start + peak.index, ..peak });
        };
        for (index, block) in blocks.iter().enumerate() {
            let (scale, min) = shared.pair(index);
            push_codes(&Affine { scale, min }.codes(block, top), planes);
        }
        let Some(scales) = planes.last_mut() else { continue };
        shared.push(scales);
    }
    Ok(())
}

/// Rounds the grids of up to 8 blocks to 6-bit multiples of two f16 numbers, then tries the neighbouring multiples of
/// each. `None` when a number overflows f16.
fn shared_scales(blocks: &[[f32; BLOCK]], weights: &[[f32; BLOCK]], top: f32, measured: bool) -> Option<SharedScales> {
    let free: Vec<Affine> =
        blocks.iter().zip(weights).map(|(block, weight)| best_affine(block, weight, top, measured)).collect();
    let unit = |of: fn(&Affine) -> f32| rounded_unit(free.iter().map(of).fold(0.0, f32::max) / STEPS);
    let mut shared = SharedScales { units: (unit(|grid| grid.scale)?, unit(|grid| grid.min)?), ..Default::default() };
    let steps = |value: f32, unit: f32| if unit == 0.0 { 0.0 } else { (value / unit).round().min(STEPS) };
    for (index, ((block, weight), grid)) in blocks.iter().zip(weights).zip(&free).enumerate() {
        let (scale_steps, min_steps) = (steps(grid.scale, shared.units.0), steps(grid.min, shared.units.1));
        let mut least = f32::INFINITY;
        let changes: &[f32] = if measured { &[0.0, -1.0, 1.0, -2.0, 2.0] } else { &[0.0, -1.0, 1.0] };
        for scale_change in changes {
            for min_change in changes {
                let scale = limit(scale_steps + scale_change, 0.0, STEPS);
                let min = limit(min_steps + min_change, 0.0, STEPS);
                let candidate = Affine { scale: shared.units.0 * scale, min: shared.units.1 * min };
                let error = candidate.error(block, weight, top);
                if error < least {
                    least = error;
                    shared.steps[index] = (scale as u8, min as u8);
                }
            }
        }
    }
    Some(shared)
}
