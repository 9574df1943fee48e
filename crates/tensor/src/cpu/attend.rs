//! Attention over the cache: one query head of one token at a time.

use std::ops::Range;

use super::simd::{Simd, by_level};
use super::{Shared, exp};
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
    /// y [T, H, d]
    pub y: Shared<f32>,
}

by_level! {
    /// Computes some of the T · H heads of all tokens.
    pub(crate) fn attend<S>(heads: &Heads<'_>, range: Range<usize>) {
        let mut scores = Vec::new();
        let mut row = Vec::new();
        for number in range {
            // SAFETY: the caller has checked the instructions.
            unsafe {
                match heads.op.element {
                    CacheElement::F32 => head::<S, F32>(heads, number, &mut scores, &mut row),
                    CacheElement::F16 => head::<S, F16>(heads, number, &mut scores, &mut row),
                    _ => head::<S, CODES>(heads, number, &mut scores, &mut row),
                }
            }
        }
    }
}

const F32: u8 = 0;
const F16: u8 = 1;
const CODES: u8 = 2;

/// One head of one token.
#[inline(always)]
unsafe fn head<S: Simd, const ELEMENT: u8>(
    heads: &Heads<'_>,
    number: usize,
    scores: &mut Vec<f32>,
    unpacked: &mut Vec<f32>,
) {
    let op = heads.op;
    let (d, token, head) = (op.head_dim, number / op.heads, number % op.heads);
    let (position, base) = (heads.positions[token] as usize, heads.bases[token] as usize);
    let begin = op.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let (width, kv_head) = (op.kv_heads * d, head / (op.heads / op.kv_heads));
    let (q, slope) = (&heads.q[number * d..][..d], op.slope(head) as f32);
    let at = |p: usize| op.rows().row(base, p) * width + kv_head * d;
    scores.clear();
    for p in begin..=position {
        // SAFETY: the caller has checked the instructions.
        let raw = unsafe {
            if ELEMENT == CODES {
                op.element.read_part(heads.keys, width, at(p), d, unpacked);
                dot::<S, F32>(q, bytemuck::cast_slice(unpacked))
            } else {
                dot::<S, ELEMENT>(q, part::<ELEMENT>(heads.keys, at(p), d))
            }
        };
        scores.push(op.fast_score(raw, slope, position - p));
    }
    let peak = scores.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    scores.iter_mut().for_each(|score| *score = exp(*score - peak));
    let total = super::lane_sum(scores, |v| v);
    // SAFETY: each head is in one range.
    let y = unsafe { heads.y.part(number * d..(number + 1) * d) };
    y.fill(0.0);
    for (p, &weight) in (begin..=position).zip(scores.iter()) {
        // SAFETY: the caller has checked the instructions.
        unsafe {
            if ELEMENT == CODES {
                op.element.read_part(heads.values, width, at(p), d, unpacked);
                add::<S, F32>(y, weight, bytemuck::cast_slice(unpacked));
            } else {
                add::<S, ELEMENT>(y, weight, part::<ELEMENT>(heads.values, at(p), d));
            }
        }
    }
    let inverse = 1.0 / total;
    y.iter_mut().for_each(|y| *y *= inverse);
}

/// The bytes of `count` values of a cache from value `at` on.
#[inline(always)]
fn part<const ELEMENT: u8>(cache: &Values, at: usize, count: usize) -> &[u8] {
    let bytes = if ELEMENT == F16 { 2 } else { 4 };
    &cache.bytes()[at * bytes..(at + count) * bytes]
}

/// Eight values of a row of the cache.
#[inline(always)]
unsafe fn eight<S: Simd, const ELEMENT: u8>(row: &[u8], at: usize) -> S::F {
    // SAFETY: the caller has checked the instructions, and that the row has eight values from `at` on.
    unsafe {
        if ELEMENT == F16 { S::load_half(row.as_ptr().add(2 * at)) } else { S::load(row.as_ptr().add(4 * at).cast()) }
    }
}

/// One value of a row of the cache.
#[inline(always)]
fn one<const ELEMENT: u8>(row: &[u8], at: usize) -> f32 {
    if ELEMENT == F16 {
        half::f16::from_le_bytes([row[2 * at], row[2 * at + 1]]).to_f32()
    } else {
        f32::from_le_bytes([row[4 * at], row[4 * at + 1], row[4 * at + 2], row[4 * at + 3]])
    }
}

/// q · row
#[inline(always)]
unsafe fn dot<S: Simd, const ELEMENT: u8>(q: &[f32], row: &[u8]) -> f32 {
    let whole = q.len() / 8 * 8;
    // SAFETY: the caller has checked the instructions, and that the row has as many values as q.
    let sum = unsafe {
        let (mut even, mut odd) = (S::splat(0.0), S::splat(0.0));
        let mut i = 0;
        while i + 16 <= whole {
            even = S::fma(S::load(q.as_ptr().add(i)), eight::<S, ELEMENT>(row, i), even);
            odd = S::fma(S::load(q.as_ptr().add(i + 8)), eight::<S, ELEMENT>(row, i + 8), odd);
            i += 16;
        }
        if i < whole {
            even = S::fma(S::load(q.as_ptr().add(i)), eight::<S, ELEMENT>(row, i), even);
        }
        S::sum(S::add(even, odd))
    };
    (whole..q.len()).fold(sum, |sum, i| sum + q[i] * one::<ELEMENT>(row, i))
}

/// y += weight · row
#[inline(always)]
unsafe fn add<S: Simd, const ELEMENT: u8>(y: &mut [f32], weight: f32, row: &[u8]) {
    let whole = y.len() / 8 * 8;
    // SAFETY: the caller has checked the instructions, and that the row has as many values as y.
    unsafe {
        let weight = S::splat(weight);
        let mut i = 0;
        while i < whole {
            let to = y.as_mut_ptr().add(i);
            S::store(to, S::fma(weight, eight::<S, ELEMENT>(row, i), S::load(to)));
            i += 8;
        }
    }
    (whole..y.len()).for_each(|i| y[i] += weight * one::<ELEMENT>(row, i));
}
