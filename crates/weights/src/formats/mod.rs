//! The formats weights can take on the GPU.
//!
//! A format splits a row of `K` weights into blocks and stores each part of the blocks (codes, scales, high bits) in
//! its own *plane*, an array `[N rows][K / block]`, so that a kernel reads every part with aligned vector loads.
//! Interleaved blocks, as files of other tools have them, lost: their 18 or 144 byte strides make every load unaligned.
//!
//! A format is one file here, one WGSL file, and one line of [`FORMATS`]. All multi-byte numbers are little endian.
//!
//! `K` that is not a multiple of [`Format::block`] is padded with zero weights; tensors keep the logical `K`.

mod affine;
mod f16;
mod f32;
mod q4_0;
mod q4_k;
pub mod q5_k;
pub mod q6_k;
mod q8_0;
pub(crate) mod search;
#[cfg(test)]
mod tests;

use crate::dtype::Dtype;
use half::slice::HalfFloatSliceExt;
use std::fmt::Debug;

pub use self::f16::F16;
pub use self::f32::F32;
pub use self::q4_0::Q4_0;
pub use self::q4_k::Q4K;
pub use self::q5_k::Q5K;
pub use self::q6_k::Q6K;
pub use self::q8_0::Q8_0;

/// Every format, from exact to smallest. Tests walk this table.
pub static FORMATS: &[&dyn Format] = &[&F32, &F16, &Q8_0, &Q6K, &Q5K, &Q4K, &Q4_0];

/// The format called `name`, e.g. `"q4_0"`.
pub fn format_by_name(name: &str) -> Option<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.name() == name)
}

/// The format for rows of both formats in one matrix: where they differ, numbers plain enough to hold both without
/// loss.
///
/// Quantizing one side again would add its error to that of the first time. For parts whose rows cannot stand in groups
/// of their own.
pub fn joined_format(a: &'static dyn Format, b: &'static dyn Format) -> &'static dyn Format {
    match (a.name(), b.name()) {
        (x, y) if x == y => a,
        ("f32", _) | (_, "f32") => &F32,
        _ => &F16,
    }
}

/// One plane of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneSpec {
    /// `"codes"`, `"scales"`, …; `"values"` for dense formats.
    pub name: &'static str,
    /// Bytes of this plane for one block.
    pub bytes_per_block: usize,
    /// Element type under which the plane is saved in safetensors.
    pub dtype: Dtype,
}

/// A value that a format cannot hold: its magnitude, or its block's scale, exceeds what f16 represents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unrepresentable {
    /// Index within the row.
    pub index: usize,
    /// The value.
    pub value: f32,
}

/// How weights are laid out, and how to get there from `f32` and back.
pub trait Format: Sync + Send + Debug {
    /// The name in policies, files and command lines.
    fn name(&self) -> &'static str;

    /// Weights per block along `K`: 1 for dense formats, 32 for the quantized ones.
    fn block(&self) -> usize;

    /// The planes, in the order in which they are bound and passed.
    fn planes(&self) -> &'static [PlaneSpec];

    /// Appends one row to every plane.
    ///
    /// `values` `[K]`, finite, K a multiple of [`block`](Self::block). `importance` `[K]`, not negative: how much the
    /// squared error of each column counts; `None` counts all alike.
    fn quantize_row(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        planes: &mut [Vec<u8>],
    ) -> Result<(), Unrepresentable>;

    /// One row back to `f32`: `planes` each hold exactly that row, `out` is `[K]` with K a multiple of the block.
    fn dequantize_row(&self, planes: &[&[u8]], out: &mut [f32]);

    /// Stored bits for one weight, padding aside.
    fn bits_per_weight(&self) -> f64 {
        let bytes: usize = self.planes().iter().map(|plane| plane.bytes_per_block).sum();
        bytes as f64 * 8.0 / self.block() as f64
    }

    /// Whether the format stores plain numbers.
    fn is_dense(&self) -> bool {
        self.block() == 1
    }

    /// `k` rounded up to whole blocks.
    fn padded(&self, k: usize) -> usize {
        k.next_multiple_of(self.block())
    }

    /// Bytes of one row of plane number `plane` for `k` logical weights.
    fn row_bytes(&self, plane: usize, k: usize) -> u64 {
        k.div_ceil(self.block()) as u64 * self.planes()[plane].bytes_per_block as u64
    }

    /// Rows that must be taken together so that every plane advances by whole 4-byte words: 1 or 2.
    fn rows_alignment(&self, k: usize) -> usize {
        if (0..self.planes().len()).all(|plane| self.row_bytes(plane, k).is_multiple_of(4)) { 1 } else { 2 }
    }
}

/// Some rows of one tensor in one format.
#[derive(Clone, Debug)]
pub struct Planes {
    /// The format.
    pub format: &'static dyn Format,
    /// Number of rows.
    pub rows: usize,
    /// Logical weights per row; each row takes `format.padded(k)`.
    pub k: usize,
    /// One byte array per plane, `[rows][K / block]`, without padding at the end. A last odd row of f16 scales may
    /// leave a length that is not a multiple of 4: see [`Format::rows_alignment`] and [`Planes::pad_to_words`].
    pub bytes: Vec<Vec<u8>>,
}

/// Fewer values than this are quantized where they are: starting threads would take longer.
const THREADED_VALUES: usize = 1 << 17;

/// Threads to quantize with.
#[cfg(not(target_arch = "wasm32"))]
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// A browser's engine has one.
#[cfg(target_arch = "wasm32")]
fn threads() -> usize {
    1
}

impl Planes {
    /// No rows yet.
    pub fn new(format: &'static dyn Format, k: usize) -> Self {
        Self { format, rows: 0, k, bytes: vec![Vec::new(); format.planes().len()] }
    }

    /// Quantizes `values` `[rows, k]` and appends them, many rows on every core of the machine. `importance` is `[k]`.
    ///
    /// Errors: the flat index within `values` of a value that does not fit.
    pub fn push_rows(&mut self, values: &[f32], importance: Option<&[f32]>) -> Result<(), Unrepresentable> {
        assert!(self.k > 0 && values.len().is_multiple_of(self.k), "values must be whole rows of {}", self.k);
        let rows = values.len() / self.k;
        let threads = if values.len() < THREADED_VALUES { 1 } else { threads().min(rows) };
        if threads < 2 {
            return self.push_rows_here(values, importance);
        }
        let share = rows.div_ceil(threads) * self.k;
        let (format, k) = (self.format, self.k);
        let quantize = |(number, part): (usize, &[f32])| {
            let mut planes = Planes::new(format, k);
            let done = planes.push_rows_here(part, importance);
            done.map(|()| planes).map_err(|error| Unrepresentable { index: number * share + error.index, ..error })
        };
        let parts: Vec<Result<Planes, Unrepresentable>> = std::thread::scope(|scope| {
            let workers: Vec<_> =
                values.chunks(share).enumerate().map(|part| scope.spawn(move || quantize(part))).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        for part in parts {
            let part = part?;
            for (to, from) in self.bytes.iter_mut().zip(&part.bytes) {
                to.extend_from_slice(from);
            }
            self.rows += part.rows;
        }
        Ok(())
    }

    fn push_rows_here(&mut self, values: &[f32], importance: Option<&[f32]>) -> Result<(), Unrepresentable> {
        let rows = values.len() / self.k;
        for (plane, bytes) in self.bytes.iter_mut().enumerate() {
            bytes.reserve(self.format.row_bytes(plane, self.k) as usize * rows);
        }
        let padded = self.format.padded(self.k);
        let pad = |from: &[f32]| {
            let mut row = from.to_vec();
            row.resize(padded, 0.0);
            row
        };
        let padded_importance = importance.map(pad);
        for (index, row) in values.chunks_exact(self.k).enumerate() {
            let whole;
            let row = if padded == self.k {
                row
            } else {
                whole = pad(row);
                &whole
            };
            self.format
                .quantize_row(row, padded_importance.as_deref(), &mut self.bytes)
                .map_err(|error| Unrepresentable { index: index * self.k + error.index, ..error })?;
            self.rows += 1;
        }
        Ok(())
    }

    /// All rows as `f32` `[rows, k]`.
    pub fn dequantize(&self) -> Vec<f32> {
        if self.k == 0 {
            return Vec::new();
        }
        let padded = self.format.padded(self.k);
        let mut row_values = vec![0.0; padded];
        let mut out = Vec::with_capacity(self.rows * self.k);
        let row_bytes: Vec<usize> =
            (0..self.bytes.len()).map(|plane| self.format.row_bytes(plane, self.k) as usize).collect();
        for row in 0..self.rows {
            let planes: Vec<&[u8]> =
                self.bytes.iter().zip(&row_bytes).map(|(bytes, &size)| &bytes[row * size..(row + 1) * size]).collect();
            self.format.dequantize_row(&planes, &mut row_values);
            out.extend_from_slice(&row_values[..self.k]);
        }
        out
    }

    /// Appends zero bytes so that every plane is a whole number of 4-byte words, as GPU copies want. Do this on the
    /// last piece of a tensor only.
    pub fn pad_to_words(&mut self) {
        for bytes in &mut self.bytes {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }

    /// Bytes of all planes.
    pub fn size_bytes(&self) -> usize {
        self.bytes.iter().map(Vec::len).sum()
    }
}

/// The `i`-th f16 of a plane, as f32.
pub(crate) fn half_at(plane: &[u8], i: usize) -> f32 {
    half::f16::from_le_bytes([plane[2 * i], plane[2 * i + 1]]).to_f32()
}

/// Little-endian f16 bytes to `f32`, a stack buffer at a time so that the processor's own conversion is used where it
/// has one.
pub(crate) fn halves_to_f32(bytes: &[u8], out: &mut [f32]) {
    let mut halves = [half::f16::ZERO; 256];
    for (bytes, out) in bytes.chunks(512).zip(out.chunks_mut(256)) {
        let halves = &mut halves[..out.len()];
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = half::f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(out);
    }
}

/// `values` rounded to f16 and appended; the index of the first that overflows otherwise.
pub(crate) fn push_halves(values: &[f32], plane: &mut Vec<u8>) -> Result<(), usize> {
    let mut halves = [half::f16::ZERO; 256];
    for (number, values) in values.chunks(256).enumerate() {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        if let Some(index) = halves.iter().position(|half| !half.is_finite()) {
            return Err(number * 256 + index);
        }
        let start = plane.len();
        plane.resize(start + 2 * halves.len(), 0);
        for (bytes, half) in plane[start..].as_chunks_mut::<2>().0.iter_mut().zip(halves) {
            *bytes = half.to_le_bytes();
        }
    }
    Ok(())
}

/// Appends 32 codes of 4 bits: byte j holds q\[j\] and q\[j + 16\].
pub(crate) fn push_nibbles(q: &[u8; 32], plane: &mut Vec<u8>) {
    plane.extend((0..16).map(|j| q[j] | q[j + 16] << 4));
}

/// Appends a value already rounded to f16.
pub(crate) fn push_half(plane: &mut Vec<u8>, value: f32) {
    plane.extend_from_slice(&half::f16::from_f32(value).to_le_bytes());
}

/// `value` rounded to the nearest f16, or `None` where that overflows.
pub(crate) fn round_half(value: f32) -> Option<f32> {
    let rounded = half::f16::from_f32(value).to_f32();
    rounded.is_finite().then_some(rounded)
}

/// The value of the largest magnitude, with its index: the one to blame when a scale overflows.
pub(crate) fn peak_of(values: &[f32]) -> Unrepresentable {
    let mut peak = Unrepresentable { index: 0, value: 0.0 };
    for (index, &value) in values.iter().enumerate() {
        if value.abs() > peak.value.abs() {
            peak = Unrepresentable { index, value };
        }
    }
    peak
}
