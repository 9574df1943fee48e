//! A stored two-dimensional array, read by rows or by a range of columns.

use crate::checkpoint::{TensorEntry, read_exact};
use crate::dtype::Dtype;
use crate::error::WeightsError;
use crate::read::to_f32;
use crate::source::Source;
use std::ops::Range;
use std::rc::Rc;

/// When most of each row is wanted, rows are read together up to this many bytes.
const SLAB_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Array {
    file: Rc<str>,
    offset: u64,
    dtype: Dtype,
    rows: usize,
    row_bytes: usize,
}

impl Array {
    /// The array of a dense tensor.
    pub(super) fn of(entry: &TensorEntry, dtype: Dtype) -> Self {
        let offset = entry.offsets.first().copied().unwrap_or(0);
        Self { file: entry.file.clone(), offset, dtype, rows: entry.rows(), row_bytes: entry.k() * dtype.size_bytes() }
    }

    /// Reads whole rows.
    pub(super) async fn rows(&self, source: &dyn Source, rows: Range<usize>) -> Result<Vec<u8>, WeightsError> {
        read_exact(
            source,
            &self.file,
            self.offset + (rows.start * self.row_bytes) as u64,
            (rows.len() * self.row_bytes) as u64,
        )
        .await
    }

    /// Reads some columns of every row, row after row.
    pub(super) async fn columns(&self, source: &dyn Source, columns: Range<usize>) -> Result<Vec<u8>, WeightsError> {
        let (start, length) = (columns.start * self.dtype.size_bytes(), columns.len() * self.dtype.size_bytes());
        let mut out = Vec::with_capacity(self.rows * length);
        if length * 4 < self.row_bytes {
            for row in 0..self.rows {
                out.extend(
                    read_exact(source, &self.file, self.offset + (row * self.row_bytes + start) as u64, length as u64)
                        .await?,
                );
            }
            return Ok(out);
        }
        let step = (SLAB_BYTES / self.row_bytes.max(1)).max(1);
        for first in (0..self.rows).step_by(step) {
            let slab = self.rows(source, first..self.rows.min(first + step)).await?;
            for row in slab.chunks_exact(self.row_bytes) {
                out.extend_from_slice(&row[start..start + length]);
            }
        }
        Ok(out)
    }

    /// Converts bytes of this array to floats.
    pub(super) fn floats(&self, bytes: &[u8]) -> Vec<f32> {
        to_f32(self.dtype, bytes)
    }
}
