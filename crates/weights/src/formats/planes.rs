//! Rows of a tensor in a format: quantizing, storing as planes, dequantizing.

use super::{Format, Unrepresentable};

/// Some rows of one tensor in one format.
#[derive(Clone, Debug)]
pub struct Planes {
    /// The format.
    pub format: &'static dyn Format,
    /// Number of rows.
    pub rows: usize,
    /// Logical weights per row; each row takes `format.padded(k)`.
    pub k: usize,
    /// One byte array per plane, `[rows][K / block]`, not padded at the end. An odd number of rows of f16 scales may
    /// have a length that is not a multiple of 4: see [`Format::rows_alignment`] and [`Planes::pad_to_words`].
    pub bytes: Vec<Vec<u8>>,
}

/// Fewer values than this are quantized on the calling thread: starting threads would take longer.
const THREADED_VALUES: usize = 1 << 17;

/// Number of quantizer threads.
#[cfg(not(target_arch = "wasm32"))]
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// WebAssembly has one thread.
#[cfg(target_arch = "wasm32")]
fn threads() -> usize {
    1
}

impl Planes {
    /// No rows yet.
    pub fn new(format: &'static dyn Format, k: usize) -> Self {
        Self { format, rows: 0, k, bytes: vec![Vec::new(); format.planes().len()] }
    }

    /// Quantizes `values` `[rows, k]` and appends them; many rows use every core of the machine. `importance` is `[k]`.
    ///
    /// Errors: the index in `values` of a value that the format cannot represent.
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

    /// Appends zero bytes so that every plane is a whole number of 4-byte words, as GPU copies require. Only for the
    /// last piece of a tensor.
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
