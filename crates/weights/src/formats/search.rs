//! The search for a block's scale that the symmetric formats share.
//!
//! Rounding to the grid that just covers the largest weight (the plain method) spends the grid on one outlier. Here
//! some twenty grids around that one are tried; for each the codes are fixed by rounding and the best scale for those
//! codes has the closed form `Σ i·w·q / Σ i·q²`, with error `Σ i·w² − (Σ i·w·q)² / Σ i·q²`. The largest last term wins.
//! Trying both signs of the scale lost: twice the time for 0.1 % less error in 4 bits on normal weights (2.5 % in 6
//! bits).

use super::round_half;

/// The integer levels of a format: weight = scale · q for q in `low..=high`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    pub low: f32,
    pub high: f32,
}

/// Independent sums, so that the compiler can use vector registers without reordering floats on its own.
const LANES: usize = 8;

/// Nearest integer, ties to even, for |x| < 2^22: two additions that every target vectorises.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23
    (x + MAGIC) - MAGIC
}

#[inline(always)]
#[allow(clippy::manual_clamp)] // `clamp` keeps NaN and checks its bounds; this form is two instructions
pub(crate) fn limit(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// The code of `value` on the grid with inverse scale `inverse`.
#[inline(always)]
pub(crate) fn code(value: f32, inverse: f32, levels: Levels) -> f32 {
    nearest(limit(value * inverse, levels.low, levels.high))
}

/// `1 / scale`, with 0 for 0, so that a block of zeros gets zero codes.
#[inline(always)]
pub(crate) fn invert(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// `Σ i·w·q` and `Σ i·q²`.
#[inline(always)]
fn moments<const N: usize>(values: &[f32; N], weights: &[f32; N], inverse: f32, levels: Levels) -> (f32, f32) {
    let (mut wq, mut qq) = ([0.0f32; LANES], [0.0f32; LANES]);
    for start in (0..N).step_by(LANES) {
        for lane in 0..LANES {
            let q = code(values[start + lane], inverse, levels);
            let iq = weights[start + lane] * q;
            wq[lane] += iq * values[start + lane];
            qq[lane] += iq * q;
        }
    }
    (wq.iter().sum(), qq.iter().sum())
}

/// Weighted squared error of rounding `values` to the grid of `scale`.
#[inline(always)]
fn error<const N: usize>(values: &[f32; N], weights: &[f32; N], scale: f32, levels: Levels) -> f32 {
    let inverse = invert(scale);
    let mut sum = [0.0f32; LANES];
    for start in (0..N).step_by(LANES) {
        for lane in 0..LANES {
            let difference = values[start + lane] - scale * code(values[start + lane], inverse, levels);
            sum[lane] += weights[start + lane] * difference * difference;
        }
    }
    sum.iter().sum()
}

/// The f16 scale (as f32, of either sign) with the least weighted squared error among the candidates; never worse than
/// the plain `peak / low`. `None` when the scale overflows f16. `N` is a multiple of 8.
pub(crate) fn best_scale<const N: usize>(values: &[f32; N], weights: &[f32; N], levels: Levels) -> Option<f32> {
    let peak = signed_peak(values);
    if peak == 0.0 {
        return Some(0.0);
    }
    let plain = round_half(peak / levels.low)?;
    let (mut best, mut best_score) = (plain, 0.0);
    for step in -8..=11 {
        let inverse = (levels.low - 0.1 * step as f32) / peak;
        let (wq, qq) = moments(values, weights, inverse, levels);
        if qq > 0.0 && wq * wq > best_score * qq {
            best_score = wq * wq / qq;
            best = wq / qq;
        }
    }
    let Some(best) = round_half(best) else { return Some(plain) };
    let better = error(values, weights, best, levels) < error(values, weights, plain, levels);
    Some(if better { best } else { plain })
}

fn signed_peak<const N: usize>(values: &[f32; N]) -> f32 {
    let (mut low, mut high) = (0.0f32, 0.0f32);
    for &value in values {
        low = low.min(value);
        high = high.max(value);
    }
    if -low > high { low } else { high }
}

/// The columns' weights for the block at `start`, all 1 without importance.
#[inline(always)]
pub(crate) fn block_weights<const N: usize>(importance: Option<&[f32]>, start: usize) -> [f32; N] {
    importance.and_then(|all| all.get(start..start + N)?.try_into().ok()).unwrap_or([1.0; N])
}
