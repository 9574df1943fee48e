//! Reads rows: from stored bytes to `f32`, or to the planes of a format.
//!
//! Rows are the unit because both uses need them: an upload takes a few MiB at a time, and a vocabulary matrix is
//! divided into row shards for GPUs with small bindings. Every float is checked when read: a NaN found here names its
//! tensor, a NaN in a logit names nothing.

use crate::checkpoint::{Checkpoint, Stored, TensorEntry, read_exact};
use crate::dtype::Dtype;
use crate::error::WeightsError;
use crate::formats::{Format, Planes, Unrepresentable, halves_to_f32};
use std::ops::Range;

impl Checkpoint {
    /// Rows of a tensor as `f32` `[rows, K]`, dense or dequantized. Vectors are one row.
    ///
    /// Errors: missing tensor, rows out of range, not a floating-point tensor, NaN or infinity, a failing source.
    pub async fn read_rows_f32(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let entry = self.require(name)?;
        check_rows(entry, &rows)?;
        if let Some(reader) = &entry.reader {
            let values = reader.read_f32(self.source.as_ref(), name, rows.clone()).await?;
            check_finite(entry, rows.start, entry.k(), &values)?;
            return Ok(values);
        }
        match entry.stored {
            Stored::Dense(dtype) => {
                check_dtype(entry, dtype)?;
                let bytes = self.read_plane(entry, 0, &rows).await?;
                let values = to_f32(dtype, &bytes);
                check_finite(entry, rows.start, entry.k(), &values)?;
                Ok(values)
            }
            Stored::Planes(_) | Stored::Foreign(_) => Ok(self.read_stored_planes(entry, &rows).await?.dequantize()),
        }
    }

    /// A whole tensor as `f32`, row-major: for norms and biases, and for tests.
    pub async fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let rows = self.require(name)?.rows();
        self.read_rows_f32(name, 0..rows).await
    }

    /// Rows of a tensor as the planes of `format`.
    ///
    /// Bytes stored in that format are copied; dense rows are quantized; quantized rows are dequantized when `format`
    /// is dense. Errors: as [`read_rows_f32`](Self::read_rows_f32), and [`WeightsError::Requantize`],
    /// [`WeightsError::Unrepresentable`].
    pub async fn read_planes(
        &self,
        name: &str,
        rows: Range<usize>,
        format: &'static dyn Format,
    ) -> Result<Planes, WeightsError> {
        self.read_planes_weighted(name, rows, format, None).await
    }

    /// As [`read_planes`](Self::read_planes), with the importance `[K]` of each column for the quantizer.
    pub async fn read_planes_weighted(
        &self,
        name: &str,
        rows: Range<usize>,
        format: &'static dyn Format,
        importance: Option<&[f32]>,
    ) -> Result<Planes, WeightsError> {
        let entry = self.require(name)?;
        check_rows(entry, &rows)?;
        check_importance(entry, entry.k(), importance)?;
        if importance.is_none()
            && let Some(planes) = self.source.made_planes(name, rows.clone(), format)
        {
            return Ok(planes);
        }
        if let Stored::Planes(stored) = entry.stored {
            if stored.name() == format.name() {
                return self.read_stored_planes(entry, &rows).await;
            }
            if !format.is_dense() {
                return Err(WeightsError::Requantize {
                    tensor: entry.name.clone(),
                    stored: stored.name(),
                    wanted: format.name(),
                });
            }
        }
        if let (Stored::Foreign(foreign), Some(reader)) = (entry.stored, &entry.reader)
            && foreign.native.name() == format.name()
            && let Some(planes) = reader.read_planes(self.source.as_ref(), name, rows.clone()).await?
        {
            check_scales(entry, rows.start, &planes)?;
            return Ok(planes);
        }
        let first = rows.start;
        if let Stored::Dense(dtype) = entry.stored
            && format.is_dense()
            && format.planes()[0].dtype == dtype
            && entry.reader.is_none()
        {
            return self.read_same_dense(entry, rows, format, dtype).await;
        }
        let count = rows.len();
        let values = self.read_rows_f32(name, rows).await?;
        let mut planes = Planes::new(format, entry.k());
        if values.is_empty() {
            planes.rows = count;
            return Ok(planes);
        }
        planes
            .push_rows(&values, importance)
            .map_err(|error| unrepresentable(entry, first as u64 * entry.k() as u64, format, error))?;
        Ok(planes)
    }

    /// Columns of a dense tensor `[K, N]` as rows of the planes of `format`: for matrices stored as `[in, out]`. Reads
    /// the whole tensor, a few rows at a time, and holds the requested columns as `f32`.
    ///
    /// `importance` \[K\] has one value for each stored row.
    ///
    /// Errors: as [`read_planes_weighted`](Self::read_planes_weighted), and a tensor that is not a dense matrix.
    pub async fn read_planes_transposed(
        &self,
        name: &str,
        columns: Range<usize>,
        format: &'static dyn Format,
        importance: Option<&[f32]>,
    ) -> Result<Planes, WeightsError> {
        const CHUNK_VALUES: usize = 1 << 20;
        let entry = self.require(name)?;
        let (rows, width) = (entry.rows(), entry.k());
        if entry.shape.len() != 2
            || columns.start > columns.end
            || columns.end > width
            || !matches!(entry.stored, Stored::Dense(_))
        {
            return Err(WeightsError::Request {
                tensor: entry.name.clone(),
                expected: format!("columns {columns:?} of a dense matrix"),
                got: format!(
                    "shape {:?}, stored as {}; quantize the original checkpoint while it is loaded",
                    entry.shape,
                    entry.stored.name()
                ),
            });
        }
        check_importance(entry, rows, importance)?;
        let mut transposed = vec![0f32; columns.len() * rows];
        let step = (CHUNK_VALUES / width.max(1)).max(1);
        for start in (0..rows).step_by(step) {
            let part = self.read_rows_f32(name, start..(start + step).min(rows)).await?;
            for (offset, row) in part.chunks_exact(width).enumerate() {
                for (column, value) in row[columns.clone()].iter().enumerate() {
                    transposed[column * rows + start + offset] = *value;
                }
            }
        }
        let mut planes = Planes::new(format, rows);
        planes.push_rows(&transposed, importance).map_err(|error| unrepresentable(entry, 0, format, error))?;
        Ok(planes)
    }

    /// Reads dense rows whose stored type is already the format's: checked, not converted.
    async fn read_same_dense(
        &self,
        entry: &TensorEntry,
        rows: Range<usize>,
        format: &'static dyn Format,
        dtype: Dtype,
    ) -> Result<Planes, WeightsError> {
        let bytes = self.read_plane(entry, 0, &rows).await?;
        check_finite_bytes(entry, rows.start, entry.k(), dtype, &bytes)?;
        Ok(Planes { format, rows: rows.len(), k: entry.k(), bytes: vec![bytes] })
    }

    async fn read_stored_planes(&self, entry: &TensorEntry, rows: &Range<usize>) -> Result<Planes, WeightsError> {
        let Stored::Planes(format) = entry.stored else {
            return Err(wrong_dtype(entry));
        };
        let mut planes = Planes::new(format, entry.k());
        planes.rows = rows.len();
        for number in 0..format.planes().len() {
            planes.bytes[number] = self.read_plane(entry, number, rows).await?;
        }
        check_scales(entry, rows.start, &planes)?;
        Ok(planes)
    }

    async fn read_plane(
        &self,
        entry: &TensorEntry,
        plane: usize,
        rows: &Range<usize>,
    ) -> Result<Vec<u8>, WeightsError> {
        // The header was checked: offset + rows * row_bytes is inside the file, so neither product overflows.
        let row_bytes = entry.row_bytes(plane);
        let offset = entry.offsets[plane] + rows.start as u64 * row_bytes;
        read_exact(self.source.as_ref(), &entry.file, offset, rows.len() as u64 * row_bytes).await
    }
}

fn check_rows(entry: &TensorEntry, rows: &Range<usize>) -> Result<(), WeightsError> {
    if rows.start <= rows.end && rows.end <= entry.rows() {
        return Ok(());
    }
    Err(WeightsError::Request {
        tensor: entry.name.clone(),
        expected: format!("rows within 0..{} of its shape {:?}", entry.rows(), entry.shape),
        got: format!("{rows:?}"),
    })
}

fn check_importance(entry: &TensorEntry, inputs: usize, importance: Option<&[f32]>) -> Result<(), WeightsError> {
    let Some(importance) = importance else { return Ok(()) };
    let sound = importance.iter().all(|value| value.is_finite() && *value >= 0.0);
    if importance.len() == inputs && sound {
        return Ok(());
    }
    Err(WeightsError::Request {
        tensor: entry.name.clone(),
        expected: format!("an importance of {inputs} finite values that are not negative"),
        got: format!("{} values{}", importance.len(), if sound { "" } else { ", some negative or not finite" }),
    })
}

fn wrong_dtype(entry: &TensorEntry) -> WeightsError {
    WeightsError::Request {
        tensor: entry.name.clone(),
        expected: "weights of type F32, F16 or BF16".to_owned(),
        got: format!("{}; convert the checkpoint to BF16", entry.stored.name()),
    }
}

fn check_dtype(entry: &TensorEntry, dtype: Dtype) -> Result<(), WeightsError> {
    if dtype.is_weight() { Ok(()) } else { Err(wrong_dtype(entry)) }
}

fn unrepresentable(
    entry: &TensorEntry,
    base: u64,
    format: &'static dyn Format,
    error: Unrepresentable,
) -> WeightsError {
    WeightsError::Unrepresentable {
        tensor: entry.name.clone(),
        index: base + error.index as u64,
        value: error.value,
        format: format.name(),
    }
}

/// Little-endian floats of `dtype` as `f32`.
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => {
            let mut values = vec![0.0; bytes.len() / 2];
            halves_to_f32(bytes, &mut values);
            values
        }
        _ => bytes.as_chunks::<2>().0.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)).collect(),
    }
}

/// Checks that `values`, which begin at `first_row` of rows of `width`, are finite.
fn check_finite(entry: &TensorEntry, first_row: usize, width: usize, values: &[f32]) -> Result<(), WeightsError> {
    // The common case is one vectorized pass; the position is only searched after a failure.
    let largest = values.iter().fold(0u32, |most, value| most.max(value.to_bits() & 0x7fff_ffff));
    if largest < 0x7f80_0000 {
        return Ok(());
    }
    let index = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
    Err(WeightsError::NotFinite {
        tensor: entry.name.clone(),
        index: first_row as u64 * width as u64 + index as u64,
        value: values[index],
    })
}

/// Checks the f16 numbers of all planes.
fn check_scales(entry: &TensorEntry, first_row: usize, planes: &Planes) -> Result<(), WeightsError> {
    for (number, plane) in planes.format.planes().iter().enumerate().filter(|(_, plane)| plane.halves > 0) {
        let per_row = planes.format.row_bytes(number, entry.k()) as usize / plane.bytes * plane.halves;
        let bytes = &planes.bytes[number];
        if plane.bytes == 2 * plane.halves {
            check_finite_bytes(entry, first_row, per_row, Dtype::F16, bytes)?;
            continue;
        }
        let halves: Vec<u8> =
            bytes.chunks_exact(plane.bytes).flat_map(|unit| &unit[..2 * plane.halves]).copied().collect();
        check_finite_bytes(entry, first_row, per_row, Dtype::F16, &halves)?;
    }
    Ok(())
}

/// As [`check_finite`], on stored F32, F16 or BF16, by the exponent bits only.
fn check_finite_bytes(
    entry: &TensorEntry,
    first_row: usize,
    width: usize,
    dtype: Dtype,
    bytes: &[u8],
) -> Result<(), WeightsError> {
    let halves = || bytes.as_chunks::<2>().0.iter().fold(0, |most, b| most.max(u16::from_le_bytes(*b) & 0x7fff));
    let words = || bytes.as_chunks::<4>().0.iter().fold(0, |most, b| most.max(u32::from_le_bytes(*b) & 0x7fff_ffff));
    let finite = match dtype {
        Dtype::F32 => words() < 0x7f80_0000,
        Dtype::F16 => halves() < 0x7c00,
        _ => halves() < 0x7f80,
    };
    if finite { Ok(()) } else { check_finite(entry, first_row, width, &to_f32(dtype, bytes)) }
}
