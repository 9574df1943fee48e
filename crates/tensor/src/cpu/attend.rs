//! Attention over the cache: the query heads of one token that share a key-value head, four at a time at most, so that
//! a row of the cache is converted to f32 once for all of them.

use std::ops::Range;

use super::simd::{Simd, by_level};
use super::{Shared, exp, lane_sum};
use crate::graph::Values;
use crate::ops::{Attention, CacheElement};

/// The tensors of an attention.
pub(crate) struct Heads<'a> {
    pub op: &'a Attention,
    /// q [T, H, d]
    pub q: &'a [f32],
    pub keys: &'a Values,
    pub values: &'a Values,
    pub positions: &'a [u32],
    pub bases: &'a [u32],
    /// What follows the bases; see [`crate::ops::CacheRows`].
    pub table: &'a [u32],
    /// y [T, H, d]
    pub y: Shared<f32>,
    /// Query heads in one part of the work: 1, 2 or 4.
    pub together: usize,
}

impl Heads<'_> {
    /// The most query heads that share a key-value head, of 1, 2 and 4, with which there are enough parts for all
    /// threads.
    pub(crate) fn together(op: &Attention, tokens: usize, threads: usize) -> usize {
        let fits = |&count: &usize| {
            (op.heads / op.kv_heads).is_multiple_of(count)
                && tokens * op.heads / count >= threads.min(tokens * op.heads)
        };
        [4, 2].into_iter().find(fits).unwrap_or(1)
    }

    /// Number of parts of the work.
    pub(crate) fn parts(&self) -> usize {
        self.positions.len() * self.op.heads / self.together
    }
}

by_level! {
    /// Computes some parts of the work.
    pub(crate) fn attend<S>(heads: &Heads<'_>, range: Range<usize>) {
        let mut memory = Memory::default();
        for number in range {
            // SAFETY: the caller has checked the instructions.
            unsafe {
                match (heads.op.element, heads.together) {
                    (CacheElement::F16, 4) => part::<S, F16, 4>(heads, number, &mut memory),
                    (CacheElement::F16, 2) => part::<S, F16, 2>(heads, number, &mut memory),
                    (CacheElement::F16, _) => part::<S, F16, 1>(heads, number, &mut memory),
                    (_, 4) => part::<S, F32, 4>(heads, number, &mut memory),
                    (_, 2) => part::<S, F32, 2>(heads, number, &mut memory),
                    (_, _) => part::<S, F32, 1>(heads, number, &mut memory),
                }
            }
        }
    }
}

const F32: u8 = 0;
const F16: u8 = 1;

/// What the parts of one thread reuse.
#[derive(Default)]
struct Memory {
    /// The first value of the head in each row that the token sees.
    starts: Vec<usize>,
    /// The starts in `unpacked`.
    unpacked_starts: Vec<usize>,
    /// Scores, then weights [C, rows].
    scores: Vec<f32>,
    /// The head's part of rows that are quantized.
    unpacked: Vec<f32>,
}

/// C query heads of one token.
#[inline(always)]
unsafe fn part<S: Simd, const ELEMENT: u8, const C: usize>(heads: &Heads<'_>, number: usize, memory: &mut Memory) {
    let op = heads.op;
    let (d, first) = (op.head_dim, number * C);
    let (token, head) = (first / op.heads, first % op.heads);
    let (position, base) = (heads.positions[token] as usize, heads.bases[token] as usize);
    let begin = op.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let (width, kv_head) = (op.kv_heads * d, head / (op.heads / op.kv_heads));
    let count = position + 1 - begin;
    let Memory { starts, unpacked_starts, scores, unpacked } = memory;
    row_starts(op, heads.table, base, begin..begin + count, starts);
    starts.iter_mut().for_each(|start| *start = *start * width + kv_head * d);
    let quantized = op.element.is_quantized();
    if quantized {
        unpacked_starts.clear();
        unpacked_starts.extend((0..count).map(|row| row * d));
    }
    scores.clear();
    scores.resize(C * count, 0.0);
    let q = &heads.q[first * d..(first + C) * d];
    // SAFETY: the caller has checked the instructions. Every start is that of d values.
    unsafe {
        if quantized {
            op.element.read_parts(heads.keys, width, starts, d, unpacked);
            dots::<S, F32, C>(q, bytemuck::cast_slice(unpacked), unpacked_starts, scores);
        } else {
            dots::<S, ELEMENT, C>(q, heads.keys.bytes(), starts, scores);
        }
    }
    let mut totals = [0f32; C];
    for (c, scores) in scores.chunks_exact_mut(count).enumerate() {
        let slope = op.slope(head + c) as f32;
        if op.softcap.is_some() || op.alibi.is_some() {
            let distances = (0..count).rev();
            scores.iter_mut().zip(distances).for_each(|(score, at)| *score = op.fast_score(*score, slope, at));
        } else {
            scores.iter_mut().for_each(|score| *score *= op.scale);
        }
        let peak = scores.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        scores.iter_mut().for_each(|score| *score = exp(*score - peak));
        totals[c] = 1.0 / lane_sum(scores, |v| v);
    }
    // SAFETY: each head is in one part of the work; the rest as above.
    unsafe {
        let y = heads.y.part(first * d..(first + C) * d);
        if quantized {
            op.element.read_parts(heads.values, width, starts, d, unpacked);
            mix::<S, F32, C>(scores, bytemuck::cast_slice(unpacked), unpacked_starts, totals, y);
        } else {
            mix::<S, ELEMENT, C>(scores, heads.values.bytes(), starts, totals, y);
        }
    }
}

/// The cache rows of consecutive positions.
#[inline(always)]
fn row_starts(op: &Attention, table: &[u32], base: usize, positions: Range<usize>, starts: &mut Vec<usize>) {
    let rows = op.rows();
    starts.clear();
    let mut position = positions.start;
    while position < positions.end {
        let count = rows.consecutive(position).min(positions.end - position);
        let row = rows.row(table, base, position);
        starts.extend(row..row + count);
        position += count;
    }
}

/// Eight values from value `at` on.
#[inline(always)]
unsafe fn eight<S: Simd, const ELEMENT: u8>(cache: &[u8], at: usize) -> S::F {
    // SAFETY: the caller has checked the instructions, and that there are eight values from `at` on.
    unsafe {
        if ELEMENT == F16 {
            S::load_half(cache.as_ptr().add(2 * at))
        } else {
            S::load(cache.as_ptr().add(4 * at).cast())
        }
    }
}

/// One value.
#[inline(always)]
fn one<const ELEMENT: u8>(cache: &[u8], at: usize) -> f32 {
    if ELEMENT == F16 {
        half::f16::from_le_bytes([cache[2 * at], cache[2 * at + 1]]).to_f32()
    } else {
        f32::from_le_bytes([cache[4 * at], cache[4 * at + 1], cache[4 * at + 2], cache[4 * at + 3]])
    }
}

/// scores[c, row] = q[c] · row
#[inline(always)]
unsafe fn dots<S: Simd, const ELEMENT: u8, const C: usize>(
    q: &[f32],
    cache: &[u8],
    starts: &[usize],
    scores: &mut [f32],
) {
    let d = q.len() / C;
    let whole = d / 8 * 8;
    check::<ELEMENT>(cache, starts, d);
    for (row, &start) in starts.iter().enumerate() {
        // SAFETY: the caller has checked the instructions; the rows were checked here.
        unsafe {
            let mut sums = [S::splat(0.0); C];
            for i in (0..whole).step_by(8) {
                let key = eight::<S, ELEMENT>(cache, start + i);
                for c in 0..C {
                    sums[c] = S::fma(S::load(q.as_ptr().add(c * d + i)), key, sums[c]);
                }
            }
            for c in 0..C {
                let rest: f32 = (whole..d).map(|i| q[c * d + i] * one::<ELEMENT>(cache, start + i)).sum();
                scores[c * starts.len() + row] = S::sum(sums[c]) + rest;
            }
        }
    }
}

/// y[c] = factors[c] · Σ weights[c, row] · row
#[inline(always)]
unsafe fn mix<S: Simd, const ELEMENT: u8, const C: usize>(
    weights: &[f32],
    cache: &[u8],
    starts: &[usize],
    factors: [f32; C],
    y: &mut [f32],
) {
    let d = y.len() / C;
    check::<ELEMENT>(cache, starts, d);
    let mut i = 0;
    // SAFETY: the caller has checked the instructions; the rows were checked here.
    unsafe {
        while i + 16 <= d {
            let (mut low, mut high) = ([S::splat(0.0); C], [S::splat(0.0); C]);
            for (row, &start) in starts.iter().enumerate() {
                let (first, second) =
                    (eight::<S, ELEMENT>(cache, start + i), eight::<S, ELEMENT>(cache, start + i + 8));
                for c in 0..C {
                    let weight = S::splat(*weights.get_unchecked(c * starts.len() + row));
                    low[c] = S::fma(weight, first, low[c]);
                    high[c] = S::fma(weight, second, high[c]);
                }
            }
            for c in 0..C {
                let factor = S::splat(factors[c]);
                S::store(y.as_mut_ptr().add(c * d + i), S::mul(low[c], factor));
                S::store(y.as_mut_ptr().add(c * d + i + 8), S::mul(high[c], factor));
            }
            i += 16;
        }
    }
    for i in i..d {
        for c in 0..C {
            let rows = starts.iter().zip(&weights[c * starts.len()..]);
            y[c * d + i] = factors[c] * rows.map(|(start, w)| w * one::<ELEMENT>(cache, start + i)).sum::<f32>();
        }
    }
}

/// Panics unless all rows lie inside of the cache.
#[inline(always)]
fn check<const ELEMENT: u8>(cache: &[u8], starts: &[usize], d: usize) {
    let bytes = if ELEMENT == F16 { 2 } else { 4 };
    let last = starts.iter().max().copied().unwrap_or(0);
    assert!((last + d) * bytes <= cache.len(), "row at {last} of a cache of {} bytes", cache.len());
}
