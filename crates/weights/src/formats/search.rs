//! The search for a block's scale, shared by the symmetric formats.
//!
//! The plain method rounds to the grid that just covers the largest weight, so that one outlier determines the grid.
//! Here some twenty grids around that one are tried; for each the codes are fixed by rounding and the best scale for
//! those codes has the closed form `Σ i·w·q / Σ i·q²`, with error `Σ i·w² − (Σ i·w·q)² / Σ i·q²`. The grid with the
//! largest last term is chosen. Rejected for integer levels: both signs of the scale, because they take twice the time
//! for 0.1 % less error in 4 bits on normal weights (2.5 % in 6 bits).

use super::round_half;

/// The levels of a format: weight = scale · level.
pub(crate) trait Grid: Copy {
    /// The level nearest to `x`.
    fn nearest(self, x: f32) -> f32;

    /// The level that the plain method assigns to the largest weight.
    fn plain(self) -> f32;

    /// The levels at or near the ends at which the search places the largest weight, in units of the scale.
    fn ends(self) -> impl Iterator<Item = f32>;
}

/// All integers in `low..=high` as levels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    pub low: f32,
    pub high: f32,
}

impl Grid for Levels {
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        nearest(limit(x, self.low, self.high))
    }

    fn plain(self) -> f32 {
        self.low
    }

    fn ends(self) -> impl Iterator<Item = f32> {
        (-8..=11).map(move |step| self.low - 0.1 * step as f32)
    }
}

/// Independent partial sums, so that the compiler can use vector registers without reordering float additions.
const LANES: usize = 8;

/// Nearest integer, ties to even, for |x| < 2^22: two additions, which vectorize on every target.
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
    levels.nearest(value * inverse)
}

/// `1 / scale`, or 0 for 0, so that a block of zeros gets zero codes.
#[inline(always)]
pub(crate) fn invert(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// `Σ i·w·q` and `Σ i·q²`.
#[inline(always)]
fn moments<const N: usize>(values: &[f32; N], weights: &[f32; N], inverse: f32, grid: impl Grid) -> (f32, f32) {
    let (mut wq, mut qq) = ([0.0f32; LANES], [0.0f32; LANES]);
    for start in (0..N).step_by(LANES) {
        for lane in 0..LANES {
            let q = grid.nearest(values[start + lane] * inverse);
            let iq = weights[start + lane] * q;
            wq[lane] += iq * values[start + lane];
            qq[lane] += iq * q;
        }
    }
    (wq.iter().sum(), qq.iter().sum())
}

/// Weighted squared error of rounding `values` to the grid of `scale`.
#[inline(always)]
pub(super) fn error<const N: usize>(values: &[f32; N], weights: &[f32; N], scale: f32, grid: impl Grid) -> f32 {
    let inverse = invert(scale);
    let mut sum = [0.0f32; LANES];
    for start in (0..N).step_by(LANES) {
        for lane in 0..LANES {
            let difference = values[start + lane] - scale * grid.nearest(values[start + lane] * inverse);
            sum[lane] += weights[start + lane] * difference * difference;
        }
    }
    sum.iter().sum()
}

/// The f16 scale (as f32, of either sign) with the least weighted squared error of all candidates; never worse than the
/// plain one. `None` when the scale overflows f16. `N` is a multiple of 8.
pub(crate) fn best_scale<const N: usize>(values: &[f32; N], weights: &[f32; N], grid: impl Grid) -> Option<f32> {
    let peak = signed_peak(values);
    if peak == 0.0 {
        return Some(0.0);
    }
    let plain = round_half(peak / grid.plain())?;
    let (mut best, mut best_score) = (plain, 0.0);
    for end in grid.ends() {
        let inverse = end / peak;
        let (wq, qq) = moments(values, weights, inverse, grid);
        if qq > 0.0 && wq * wq > best_score * qq {
            best_score = wq * wq / qq;
            best = wq / qq;
        }
    }
    let Some(best) = round_half(best) else { return Some(plain) };
    let better = error(values, weights, best, grid) < error(values, weights, plain, grid);
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

/// The importance of the columns of the block at `start`; all 1 without importance.
#[inline(always)]
pub(crate) fn block_weights<const N: usize>(importance: Option<&[f32]>, start: usize) -> [f32; N] {
    importance.and_then(|all| all.get(start..start + N)?.try_into().ok()).unwrap_or([1.0; N])
}

/// As [`block_weights`], for formats with minima: without importance a weight counts by its own size, as the root mean
/// square of the block plus its magnitude. With equal weights the search fits the many small weights of a block at the
/// cost of the few large ones, and models lose more by that: the distributions of the embedded model diverge by 3 %
/// less so in q4_1 and by 6 % in q5_1. Rejected: the same for q4_0 (no change on the embedded model), and squares (12 %
/// and 3 % more).
#[inline(always)]
pub(crate) fn sized_weights<const N: usize>(importance: Option<&[f32]>, start: usize, values: &[f32; N]) -> [f32; N] {
    if importance.is_some() {
        return block_weights(importance, start);
    }
    let mean = (values.iter().map(|value| value * value).sum::<f32>() / N as f32).sqrt();
    if mean > 0.0 && mean.is_finite() { values.map(|value| (mean + value.abs()) / mean) } else { [1.0; N] }
}
