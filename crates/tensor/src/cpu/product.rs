//! Products of rows of x with weights in any format.
//!
//! Eight rows of weights are multiplied at once, one in each lane ([`crate::graph::host`]), with up to four tokens, so
//! that the weights of a prompt are unpacked once for four tokens. Quantized weights are multiplied as integers with
//! activations of 8 bits; dense ones in f32.
//!
//! How the codes of a block are unpacked follows from what the format says of itself ([`Format::codes`] and its
//! planes). Rejected: weights unpacked to f32, as the interpreter does, because that takes four to eight times as many
//! instructions as products of bytes.

use std::ops::Range;

use bayan_weights::{Codes, Dtype, Format, Minimum};

use super::activations::Activations;
use super::helpers::{Divided, Input, Part};
use super::simd::{Level, Simd, by_level};
use super::{Cpu, Shared};
use crate::graph::Matrix;
use crate::graph::host::{HostRows, LANES};

/// How weights are stored.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// The numbers, in f32 or f16.
    Dense { half: bool },
    /// Bytes with a sign.
    Signed,
    /// Indices of a table of bytes with a sign.
    Table(&'static [i8; 16]),
    /// Codes without a sign of so many bits.
    Unsigned { bits: u32, scales: Scales },
}

/// How scales and minima are stored.
#[derive(Debug, Clone, Copy)]
enum Scales {
    /// An f16 for each block; the minimum is the scale times this code.
    Centred(u8),
    /// Multiples of an f16 for each half of a block ([`bayan_weights::StepScales`]); the minimum is the scale times this
    /// code.
    Steps(u8),
    /// A scale and a minimum in f16 for each block.
    Pairs,
    /// Scales and minima of 8 blocks as multiples of two numbers ([`bayan_weights::SharedScales`]).
    Shared,
}

/// The kind of a format; `None` if there is no fast product for it.
fn kind(format: &dyn Format) -> Option<Kind> {
    let planes = format.planes();
    let eights = planes.last()?.blocks == 8;
    match (format.codes(), format.group(), planes.len()) {
        (Codes::Values, _, 1) if planes[0].dtype == Dtype::F32 => Some(Kind::Dense { half: false }),
        (Codes::Values, _, 1) if planes[0].dtype == Dtype::F16 => Some(Kind::Dense { half: true }),
        (Codes::Signed { .. }, 32, 2) => Some(Kind::Signed),
        (Codes::Table(table), 32, 2) => Some(Kind::Table(table)),
        (Codes::Unsigned { bits: 4, minimum: Minimum::Centred(code) }, 32, 2) => {
            Some(Kind::Unsigned { bits: 4, scales: Scales::Centred(code) })
        }
        (Codes::Unsigned { bits: bits @ (4 | 5), minimum: Minimum::Stored }, 32, 2 | 3) => {
            Some(Kind::Unsigned { bits, scales: if eights { Scales::Shared } else { Scales::Pairs } })
        }
        (Codes::Unsigned { bits: 6, minimum: Minimum::Centred(code) }, 16, 3) if eights => {
            Some(Kind::Unsigned { bits: 6, scales: Scales::Steps(code) })
        }
        _ => None,
    }
}

/// Whether there is a fast product for a format.
pub(crate) fn is_fast(format: &dyn Format) -> bool {
    kind(format).is_some()
}

/// The product of some rows of a matrix with all tokens.
struct Tile<'a> {
    host: &'a HostRows,
    kind: Kind,
    rows: usize,
    /// x [T, K]; empty unless the weights are dense.
    x: &'a [f32],
    /// x in 8 bits, unless the weights are dense.
    rounded: Option<&'a Activations>,
    columns: usize,
    bias: Option<&'a [f32]>,
    /// y [T, width], of which the matrix's row 0 gives column `first`.
    y: Shared<f32>,
    width: usize,
    first: usize,
}

/// Tokens whose activations stay in a core's cache beside the weights of some rows.
const TOKENS: usize = 64;

/// Multiply-adds that are worth another thread.
const LEAST_WORK: usize = 1 << 15;

/// A matrix, or one that is stacked with others; its row 0 gives column `first` of y.
struct Stacked<'a> {
    first: usize,
    matrix: &'a Matrix,
    host: &'a HostRows,
    kind: Kind,
}

impl Stacked<'_> {
    fn is_dense(&self) -> bool {
        matches!(self.kind, Kind::Dense { .. })
    }
}

/// The parts of a matrix, if there is a fast product for each.
fn parts(weight: &Matrix) -> Option<Vec<Stacked<'_>>> {
    fn part(first: usize, matrix: &Matrix) -> Option<Stacked<'_>> {
        Some(Stacked { first, matrix, host: matrix.host_rows()?, kind: kind(matrix.format())? })
    }
    match weight.parts() {
        [] => Some(vec![part(0, weight)?]),
        parts => parts.iter().map(|(first, matrix)| part(*first, matrix)).collect(),
    }
}

/// y [T, N] = x [T, K] Wᵀ + bias, if there is a fast product for every part of the matrix. Returns whether there is.
pub(crate) fn linear(cpu: &Cpu, weight: &Matrix, x: &[f32], bias: Option<&[f32]>, y: &mut [f32]) -> bool {
    let Some(parts) = parts(weight) else { return false };
    let tokens = Divided::most_tokens(&divided(&parts));
    let (columns, width) = (weight.columns(), weight.rows());
    for (x, y) in x.chunks(tokens.saturating_mul(columns)).zip(y.chunks_mut(tokens.saturating_mul(width))) {
        multiply_parts(cpu, &parts, (x, columns), bias, (y, width));
    }
    true
}

/// The parts of which helpers keep rows.
fn divided<'a>(parts: &[Stacked<'a>]) -> Vec<Part<'a>> {
    let part = |part: &Stacked<'a>| Some(Part { divided: part.matrix.divided()?, first: part.first });
    parts.iter().filter_map(part).collect()
}

/// y [T, width] = x [T, columns] Wᵀ + bias
fn multiply_parts(
    cpu: &Cpu,
    parts: &[Stacked<'_>],
    (x, columns): (&[f32], usize),
    bias: Option<&[f32]>,
    (y, width): (&mut [f32], usize),
) {
    let tokens = x.len() / columns;
    let rounded = (!parts.iter().all(Stacked::is_dense)).then(|| Activations::of(cpu, x, columns));
    let divided = divided(parts);
    let exchange = cpu.helpers().filter(|_| !divided.is_empty()).map(|helpers| {
        let dense = parts.iter().any(|part| part.is_dense() && part.matrix.divided().is_some()).then_some(x);
        let rounded = rounded.as_ref();
        helpers.begin(&Input { tokens, columns, rounded, dense }, divided)
    });
    let to = Shared::new(y);
    for &Stacked { first, matrix, host, kind } in parts {
        let rows = matrix.divided().map_or(matrix.rows(), Divided::own_rows);
        let bias = bias.map(|bias| &bias[first..first + rows]);
        let rounded = rounded.as_ref().filter(|_| !matches!(kind, Kind::Dense { .. }));
        let tile = Tile { host, kind, rows, x, rounded, columns, bias, y: to, width, first };
        let least = LEAST_WORK.div_ceil(columns * LANES * tokens.max(1));
        cpu.split(rows.div_ceil(LANES), least, |groups| multiply(cpu.level(), &tile, groups));
    }
    if let Some(exchange) = exchange {
        exchange.finish(bias, y, width);
    }
}

/// Rows of a matrix that one thread multiplies.
pub(crate) struct Rows<'a> {
    pub(crate) host: &'a HostRows,
    pub(crate) format: &'static dyn Format,
    pub(crate) count: usize,
    pub(crate) columns: usize,
}

/// y [T, N] = x [T, K] Wᵀ on this thread. `x` has the values for dense weights, `rounded` for others.
///
/// # Panics
/// If there is no fast product for the format.
pub(crate) fn rows(level: Level, rows: &Rows<'_>, x: &[f32], rounded: Option<&Activations>, y: &mut [f32]) {
    let Some(kind) = kind(rows.format) else { panic!("no fast product for {}", rows.format.name()) };
    let &Rows { host, count, columns, .. } = rows;
    let rounded = rounded.filter(|_| !matches!(kind, Kind::Dense { .. }));
    let y = Shared::new(y);
    let tile = Tile { host, kind, rows: count, x, rounded, columns, bias: None, y, width: count, first: 0 };
    multiply(level, &tile, 0..count.div_ceil(LANES));
}

by_level! {
    /// Computes some groups of eight rows for all tokens.
    fn multiply<S>(tile: &Tile<'_>, groups: Range<usize>) {
        // SAFETY: the caller has checked the instructions.
        unsafe {
            match tile.kind {
                Kind::Dense { half: false } => dense::<S, false>(tile, groups),
                Kind::Dense { half: true } => dense::<S, true>(tile, groups),
                Kind::Signed => integers::<S, 8, SIGNED>(tile, groups, &[0; 16], 0),
                Kind::Table(table) => integers::<S, TABLE, SIGNED>(tile, groups, table, 0),
                Kind::Unsigned { bits, scales } => match (bits, scales) {
                    (4, Scales::Centred(code)) => integers::<S, 4, CENTRED>(tile, groups, &[0; 16], code),
                    (4, Scales::Pairs) => integers::<S, 4, PAIRS>(tile, groups, &[0; 16], 0),
                    (4, Scales::Shared) => integers::<S, 4, SHARED>(tile, groups, &[0; 16], 0),
                    (5, Scales::Pairs) => integers::<S, 5, PAIRS>(tile, groups, &[0; 16], 0),
                    (5, Scales::Shared) => integers::<S, 5, SHARED>(tile, groups, &[0; 16], 0),
                    (6, Scales::Steps(code)) => integers::<S, 6, STEPS>(tile, groups, &[0; 16], code),
                    _ => unreachable!("`kind` gives no other codes"),
                },
            }
        }
    }
}

/// Values of the parameter `SCALES`: those of [`Scales`], and a scale for each block without a minimum.
const SIGNED: u8 = 0;
const CENTRED: u8 = 1;
const STEPS: u8 = 2;
const PAIRS: u8 = 3;
const SHARED: u8 = 4;

/// The value of the parameter `BITS` for 4-bit indices of a table.
const TABLE: u32 = 0;

#[inline(always)]
unsafe fn integers<S: Simd, const BITS: u32, const SCALES: u8>(
    tile: &Tile<'_>,
    groups: Range<usize>,
    table: &[i8; 16],
    centre: u8,
) {
    let centre = f32::from(centre);
    let Some(x) = tile.rounded else { return };
    let tokens = x.codes.len() / (x.blocks * 32);
    for start in (0..tokens).step_by(TOKENS) {
        let end = tokens.min(start + TOKENS);
        for group in groups.clone() {
            let mut token = start;
            // SAFETY: the caller has checked the instructions; rows and activations have `blocks` blocks.
            unsafe {
                while token + 4 <= end {
                    let sums = group_of::<S, BITS, SCALES, 4>(tile.host, x, group, token, table, centre);
                    tile.store::<S, 4>(group, token, sums);
                    token += 4;
                }
                while token < end {
                    let sums = group_of::<S, BITS, SCALES, 1>(tile.host, x, group, token, table, centre);
                    tile.store::<S, 1>(group, token, sums);
                    token += 1;
                }
            }
        }
    }
}

/// The sums of eight rows for T tokens from `token` on.
#[inline(always)]
unsafe fn group_of<S: Simd, const BITS: u32, const SCALES: u8, const T: usize>(
    host: &HostRows,
    x: &Activations,
    group: usize,
    token: usize,
    table: &[i8; 16],
    centre: f32,
) -> [S::F; T] {
    let codes = host.group(0, group).as_ptr();
    let highs = host.group(1, group).as_ptr();
    let scales = host.group(host.planes() - 1, group).as_ptr();
    let x_codes = x.codes[token * x.blocks * 32..(token + T) * x.blocks * 32].as_ptr();
    let x_scales = x.scales[token * x.blocks * 4..(token + T) * x.blocks * 4].as_ptr();
    // SAFETY: the caller has checked the instructions. All planes have `blocks` blocks of eight rows, and the slices of
    // the activations have that many blocks of T tokens.
    unsafe {
        let mut sums = [S::splat(0.0); T];
        let mut shared = Shared8::<S>::none();
        let mut unit = S::splat(0.0);
        for block in 0..x.blocks {
            let weights = unpack::<S, BITS>(codes, highs, block, table);
            let (scale, other) = match SCALES {
                SHARED => {
                    if block % 8 == 0 {
                        shared = Shared8::at(scales.add(block / 8 * 128));
                    }
                    shared.pair(block % 8)
                }
                STEPS => {
                    // For 8 blocks: the units of eight rows, then two multiples of each row for each block.
                    let at = scales.add(block / 8 * 144);
                    if block % 8 == 0 {
                        unit = S::load_half(at);
                    }
                    let steps = S::shorts(at.add(16 + 16 * (block % 8)));
                    let of = |shift| S::mul(unit, S::add(S::floats(S::field(steps, shift, 8)), S::splat(-128.0)));
                    (of(0), of(8))
                }
                PAIRS => {
                    let at = scales.add(block * 32);
                    (S::load_half(at), S::load_half(at.add(16)))
                }
                _ => {
                    let scale = S::load_half(scales.add(block * 16));
                    (scale, scale)
                }
            };
            for t in 0..T {
                let from = x_codes.add((t * x.blocks + block) * 32);
                let by = x_scales.add((t * x.blocks + block) * 4);
                let d = S::splat(*by);
                if SCALES == STEPS {
                    let first = S::floats(dot::<S, BITS>(&weights, from, 0, 4));
                    let second = S::floats(dot::<S, BITS>(&weights, from, 4, 8));
                    sums[t] = S::fma(first, S::mul(scale, d), sums[t]);
                    sums[t] = S::fma(second, S::mul(other, d), sums[t]);
                } else {
                    let whole = S::floats(dot::<S, BITS>(&weights, from, 0, 8));
                    sums[t] = S::fma(whole, S::mul(scale, d), sums[t]);
                }
                if SCALES == PAIRS || SCALES == SHARED {
                    sums[t] = S::fma(other, S::splat(-*by.add(3)), sums[t]);
                } else if SCALES == STEPS {
                    sums[t] = S::fma(scale, S::splat(-centre * *by.add(1)), sums[t]);
                    sums[t] = S::fma(other, S::splat(-centre * *by.add(2)), sums[t]);
                } else if SCALES == CENTRED {
                    sums[t] = S::fma(scale, S::splat(-centre * *by.add(3)), sums[t]);
                }
            }
        }
        sums
    }
}

/// Scales and minima of 8 blocks of eight rows.
#[derive(Clone, Copy)]
struct Shared8<S: Simd> {
    /// Words 1 to 3 of [`bayan_weights::SharedScales`].
    steps: [S::I; 3],
    /// The units of scales and minima.
    units: (S::F, S::F),
}

impl<S: Simd> Shared8<S> {
    #[inline(always)]
    unsafe fn none() -> Self {
        // SAFETY: the caller has checked the instructions.
        unsafe { Self { steps: [S::no_integers(); 3], units: (S::splat(0.0), S::splat(0.0)) } }
    }

    /// From four words of each row.
    #[inline(always)]
    unsafe fn at(words: *const u8) -> Self {
        // SAFETY: the caller has checked the instructions, and its pointer is to 128 bytes.
        unsafe {
            let units = S::words(words);
            Self {
                steps: [S::words(words.add(32)), S::words(words.add(64)), S::words(words.add(96))],
                units: (S::low_halves(units), S::low_halves(S::field(units, 16, 16))),
            }
        }
    }

    /// The scale and minimum of a block.
    #[inline(always)]
    unsafe fn pair(&self, block: usize) -> (S::F, S::F) {
        // SAFETY: the caller has checked the instructions.
        unsafe {
            let (low, shift) = (if block < 4 { self.steps[0] } else { self.steps[1] }, 8 * (block % 4) as i32);
            let (scale, min) = (S::field(low, shift, 6), S::field(low, shift + 6, 2));
            let min = S::joined(min, S::field(self.steps[2], 4 * block as i32, 4), 2);
            (S::mul(self.units.0, S::floats(scale)), S::mul(self.units.1, S::floats(min)))
        }
    }
}

/// The codes of a block of eight rows: vector i has columns 4 i to 4 i + 3.
#[inline(always)]
unsafe fn unpack<S: Simd, const BITS: u32>(
    codes: *const u8,
    highs: *const u8,
    block: usize,
    table: &[i8; 16],
) -> [S::B; 8] {
    // SAFETY: the caller's pointers are to planes with more than `block` blocks of eight rows.
    unsafe {
        let bytes = codes.add(block * if BITS == 8 { 256 } else { 128 });
        let mut weights = [S::bytes(bytes); 8];
        if BITS == 8 {
            for (i, weight) in weights.iter_mut().enumerate() {
                *weight = S::bytes(bytes.add(32 * i));
            }
            return weights;
        }
        for i in 0..4 {
            let both = S::bytes(bytes.add(32 * i));
            let (mut low, mut high) = (S::low_nibbles(both), S::high_nibbles(both));
            if BITS == TABLE {
                (low, high) = (S::lookup(table, low), S::lookup(table, high));
            }
            // The places of the high bits are those of q5_k and q6_k.
            if BITS == 5 {
                let bits = S::bytes(highs.add(32 * block));
                low = S::or(low, S::high_bits(bits, i as i32, 1));
                high = S::or(high, S::high_bits(bits, 4 + i as i32, 1));
            }
            if BITS == 6 {
                let (first, second) = (S::bytes(highs.add(64 * block)), S::bytes(highs.add(64 * block + 32)));
                low = S::or(low, S::high_bits(first, 2 * i as i32, 3));
                high = S::or(high, S::high_bits(second, 2 * i as i32, 3));
            }
            (weights[i], weights[i + 4]) = (low, high);
        }
        weights
    }
}

/// Σ of the products of vectors `first` to `last` with the activations of one token.
#[inline(always)]
unsafe fn dot<S: Simd, const BITS: u32>(weights: &[S::B; 8], x: *const i8, first: usize, last: usize) -> S::I {
    // SAFETY: the caller's pointer is to 32 activations.
    unsafe {
        let mut total = S::no_integers();
        if BITS == 8 || BITS == TABLE {
            for i in first..last {
                total = S::dot_signed(total, weights[i], S::splat4(x.add(4 * i)));
            }
            return S::fold_signed(total);
        }
        // As many sums as fit before they are widened.
        let fit = 128 >> BITS;
        if fit >= last - first {
            let mut sums = S::no_sums();
            for i in first..last {
                sums = S::dot(sums, weights[i], S::splat4(x.add(4 * i)));
            }
            return S::fold(sums);
        }
        for start in (first..last).step_by(fit) {
            let mut sums = S::no_sums();
            for i in start..start + fit {
                sums = S::dot(sums, weights[i], S::splat4(x.add(4 * i)));
            }
            total = S::add_integers(total, S::fold(sums));
        }
        total
    }
}

#[inline(always)]
unsafe fn dense<S: Simd, const HALF: bool>(tile: &Tile<'_>, groups: Range<usize>) {
    let tokens = tile.x.len() / tile.columns;
    for start in (0..tokens).step_by(TOKENS) {
        let end = tokens.min(start + TOKENS);
        for group in groups.clone() {
            let mut token = start;
            // SAFETY: the caller has checked the instructions.
            unsafe {
                while token + 4 <= end {
                    tile.store::<S, 4>(group, token, dense_group::<S, HALF, 4>(tile, group, token));
                    token += 4;
                }
                while token < end {
                    tile.store::<S, 1>(group, token, dense_group::<S, HALF, 1>(tile, group, token));
                    token += 1;
                }
            }
        }
    }
}

/// The sums of eight rows for T tokens from `token` on.
#[inline(always)]
unsafe fn dense_group<S: Simd, const HALF: bool, const T: usize>(
    tile: &Tile<'_>,
    group: usize,
    token: usize,
) -> [S::F; T] {
    let weights = tile.host.group(0, group).as_ptr();
    let columns = tile.columns;
    let x = tile.x[token * columns..(token + T) * columns].as_ptr();
    // SAFETY: the caller has checked the instructions. A plane has at least `columns` columns of eight rows, and x has
    // that many of T tokens.
    unsafe {
        // Two sums for each token, so that one addition need not wait for the last.
        let (mut even, mut odd) = ([S::splat(0.0); T], [S::splat(0.0); T]);
        for column in (0..columns & !1).step_by(2) {
            let (first, second) = (value::<S, HALF>(weights, column), value::<S, HALF>(weights, column + 1));
            for t in 0..T {
                even[t] = S::fma(first, S::splat(*x.add(t * columns + column)), even[t]);
                odd[t] = S::fma(second, S::splat(*x.add(t * columns + column + 1)), odd[t]);
            }
        }
        for t in 0..T {
            if columns % 2 == 1 {
                let last = value::<S, HALF>(weights, columns - 1);
                even[t] = S::fma(last, S::splat(*x.add(t * columns + columns - 1)), even[t]);
            }
            even[t] = S::add(even[t], odd[t]);
        }
        even
    }
}

/// One column of eight rows.
#[inline(always)]
unsafe fn value<S: Simd, const HALF: bool>(weights: *const u8, column: usize) -> S::F {
    // SAFETY: the caller has checked the instructions, and its pointer is to more than `column` columns.
    unsafe { if HALF { S::load_half(weights.add(16 * column)) } else { S::load(weights.add(32 * column).cast()) } }
}

impl Tile<'_> {
    /// Writes the sums of eight rows for T tokens from `token` on.
    #[inline(always)]
    unsafe fn store<S: Simd, const T: usize>(&self, group: usize, token: usize, sums: [S::F; T]) {
        let first = group * LANES;
        let count = LANES.min(self.rows - first);
        for (t, sums) in sums.into_iter().enumerate() {
            let mut values = [0f32; LANES];
            // SAFETY: the array has eight values.
            unsafe { S::store(values.as_mut_ptr(), sums) };
            if let Some(bias) = self.bias {
                values.iter_mut().zip(&bias[first..first + count]).for_each(|(value, bias)| *value += bias);
            }
            let start = (token + t) * self.width + self.first + first;
            // SAFETY: the columns of these rows are written by one thread.
            unsafe { self.y.part(start..start + count) }.copy_from_slice(&values[..count]);
        }
    }
}
