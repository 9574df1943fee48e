//! The planes of a matrix in host memory, in the order in which a CPU multiplies them.
//!
//! Rows are stored in groups of eight, `[group][unit][row of the group]`, where a unit is one f16, two multiples of it,
//! or 4 bytes of codes or of a value. A vector of 32 bytes then has the same columns of eight rows, so that a product
//! needs no sum over the lanes of a vector, and one conversion serves the scales of eight rows. Rejected: row after
//! row, which needs such a sum and a conversion for every block of every row.

use std::ops::Range;

use bayan_weights::{Dtype, Format};

use super::matrix::row_bytes;

/// Rows in a group.
pub(crate) const LANES: usize = 8;

/// 64 bytes, a cache line of most CPUs, so that no vector lies in two of them.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 64]);

/// One plane.
#[derive(Debug)]
struct HostPlane {
    lines: Vec<Line>,
    /// Bytes of one row.
    row_bytes: usize,
    /// Bytes of one unit.
    unit: usize,
}

/// The rows of a matrix in host memory; missing rows of the last group are zeros.
#[derive(Debug)]
pub(crate) struct HostRows {
    planes: Vec<HostPlane>,
}

impl HostRows {
    /// Room for `rows` rows of a matrix in this format.
    pub(crate) fn new(format: &dyn Format, rows: usize, columns: usize) -> HostRows {
        let plane = |(spec, row_bytes): (&bayan_weights::PlaneSpec, usize)| {
            let bytes = rows.next_multiple_of(LANES) * row_bytes;
            let unit = if spec.dtype == Dtype::F16 || spec.apart == 2 { 2 } else { 4 };
            HostPlane { lines: vec![Line([0; 64]); bytes.div_ceil(64)], row_bytes, unit }
        };
        HostRows { planes: format.planes().iter().zip(row_bytes(format, columns)).map(plane).collect() }
    }

    /// Writes whole rows of one plane from row `first` on.
    pub(crate) fn write(&mut self, plane: usize, first: usize, rows: &[u8]) {
        let HostPlane { lines, row_bytes, unit } = &mut self.planes[plane];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(lines);
        for (row, from) in (first..).zip(rows.chunks_exact(*row_bytes)) {
            let group = &mut bytes[row / LANES * LANES * *row_bytes..][..LANES * *row_bytes];
            for (to, from) in group[row % LANES * *unit..].chunks_mut(LANES * *unit).zip(from.chunks_exact(*unit)) {
                to[..*unit].copy_from_slice(from);
            }
        }
    }

    /// Appends the bytes of one row of a plane to `out`.
    fn read(&self, plane: usize, row: usize, out: &mut Vec<u8>) {
        let HostPlane { row_bytes, unit, .. } = self.planes[plane];
        for from in self.group(plane, row / LANES)[row % LANES * unit..].chunks(LANES * unit).take(row_bytes / unit) {
            out.extend_from_slice(&from[..unit]);
        }
    }

    /// Row `row` as f32; `out` has the number of columns, rounded up to whole blocks.
    pub(crate) fn dequantize(&self, format: &dyn Format, row: usize, out: &mut [f32]) {
        let mut planes = vec![Vec::new(); self.planes.len()];
        planes.iter_mut().enumerate().for_each(|(plane, bytes)| self.read(plane, row, bytes));
        format.dequantize_row(&planes.iter().map(Vec::as_slice).collect::<Vec<_>>(), out);
    }

    /// The bytes of eight rows in one plane.
    pub(crate) fn group(&self, plane: usize, group: usize) -> &[u8] {
        let bytes = LANES * self.planes[plane].row_bytes;
        &bytemuck::cast_slice::<Line, u8>(&self.planes[plane].lines)[group * bytes..][..bytes]
    }

    /// Number of planes.
    pub(crate) fn planes(&self) -> usize {
        self.planes.len()
    }

    /// A copy of some rows, of which the first is a multiple of eight.
    pub(crate) fn rows(&self, rows: Range<usize>) -> HostRows {
        let copy = |plane: &HostPlane| {
            let bytes = rows.start * plane.row_bytes..rows.end.next_multiple_of(LANES) * plane.row_bytes;
            let mut lines = vec![Line([0; 64]); bytes.len().div_ceil(64)];
            let from = &bytemuck::cast_slice::<Line, u8>(&plane.lines)[bytes.clone()];
            bytemuck::cast_slice_mut::<Line, u8>(&mut lines)[..bytes.len()].copy_from_slice(from);
            HostPlane { lines, ..*plane }
        };
        HostRows { planes: self.planes.iter().map(copy).collect() }
    }

    /// Bytes of all planes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.planes.iter().map(|plane| 64 * plane.lines.len() as u64).sum()
    }
}
