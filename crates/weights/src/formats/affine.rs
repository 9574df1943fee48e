//! The search for scales and minima that q4_k and q5_k share: `weight = scale · q − min`, q in 0..=`TOP`.

use super::round_half;
use super::search::{limit, nearest};

pub(super) const BLOCK: usize = 32;
pub(super) const SUPER: usize = 256;
const LANES: usize = 8;
const STEPS: f32 = 63.0;
/// Below this f16 is subnormal with fewer than 6 significant bits: too coarse a unit for 63 steps.
const LEAST_UNIT: f32 = 1.0 / 262_144.0;

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
/// the closed-form best scale and minimum for its codes.
pub(super) fn best_affine(values: &[f32; BLOCK], weights: &[f32; BLOCK], top: f32) -> Affine {
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
    let lows: &[f32] = if has_importance(weights) { &[1.0, 0.92, 0.84, 0.76] } else { &[1.0] };
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

/// Whether the columns have different importance.
fn has_importance(weights: &[f32; BLOCK]) -> bool {
    weights.iter().any(|weight| *weight != weights[0])
}

/// Rounds the grids of one super-block to 6-bit multiples of two f16 numbers, then tries the neighbouring multiples of
/// each. `None` when a number overflows f16.
pub(super) fn shared_grids(blocks: &[[f32; BLOCK]], weights: &[[f32; BLOCK]], top: f32) -> Option<Vec<Affine>> {
    let free: Vec<Affine> = blocks.iter().zip(weights).map(|(block, weight)| best_affine(block, weight, top)).collect();
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
        let changes: &[f32] = if has_importance(weight) { &[0.0, -1.0, 1.0, -2.0, 2.0] } else { &[0.0, -1.0, 1.0] };
        for scale_change in changes {
            for min_change in changes {
                let candidate = Affine {
                    scale: round_half(scale_unit * limit(scale_steps + scale_change, 0.0, STEPS))?,
                    min: round_half(min_unit * limit(min_steps + min_change, 0.0, STEPS))?,
                };
                let error = candidate.error(block, weight, top);
                if best.is_none_or(|(_, least)| error < least) {
                    best = Some((candidate, error));
                }
            }
        }
        grids.extend(best.map(|(grid, _)| grid));
    }
    Some(grids)
}
