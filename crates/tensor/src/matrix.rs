//! A weight matrix on the device: the planes of its format, split by rows where a binding could not hold them.

use std::sync::Arc;

use bayan_gpu::{Buffer, Gpu, GpuError, Slice};
use bayan_weights::{Format, Planes};

/// Rows of one shard start at multiples of this, so that no workgroup straddles two shards.
pub const SHARD_ROWS: usize = 256;

/// Some of the rows of a matrix.
#[derive(Debug)]
pub struct Shard {
    /// First row.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    planes: Vec<Buffer>,
}

impl Shard {
    /// The planes as bindings, in the format's order.
    pub fn planes(&self) -> Vec<Slice> {
        self.planes.iter().map(Buffer::whole).collect()
    }
}

/// A matrix [N, K] in a weight format; row n gives output n.
#[derive(Debug)]
pub struct Matrix {
    label: String,
    format: &'static dyn Format,
    rows: usize,
    columns: usize,
    shards: Vec<Shard>,
    host: Option<Vec<Vec<u8>>>,
}

impl Matrix {
    /// What it is.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its format.
    pub fn format(&self) -> &'static dyn Format {
        self.format
    }

    /// N, the number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K, the number of inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Number of 32-blocks in a row.
    pub fn blocks(&self) -> usize {
        self.columns.div_ceil(32)
    }

    /// The shards, in row order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Bytes of all planes.
    pub fn size_bytes(&self) -> u64 {
        self.shards.iter().flat_map(|s| &s.planes).map(Buffer::size_bytes).sum()
    }

    /// Row `row` as f32, from host memory.
    ///
    /// # Panics
    /// If the matrix is only on the device.
    pub fn host_row(&self, row: usize, out: &mut Vec<f32>) {
        let planes = self.host.as_ref().unwrap_or_else(|| panic!("matrix `{}` is not on the host", self.label));
        let bytes = row_bytes(self.format, self.columns);
        let slices: Vec<&[u8]> = planes.iter().zip(&bytes).map(|(plane, &n)| &plane[row * n..(row + 1) * n]).collect();
        out.resize(self.columns.next_multiple_of(32), 0.0);
        self.format.dequantize_row(&slices, out);
        out.truncate(self.columns);
    }
}

/// Bytes of one row in each plane on the device, where every row is whole 32-blocks.
pub fn row_bytes(format: &dyn Format, columns: usize) -> Vec<usize> {
    let columns = columns.next_multiple_of(32);
    (0..format.planes().len()).map(|plane| format.row_bytes(plane, columns) as usize).collect()
}

/// Fills a matrix by consecutive rows, as they stream in.
pub struct MatrixBuilder<'a> {
    gpu: Option<&'a Gpu>,
    matrix: Matrix,
    filled: usize,
}

impl<'a> MatrixBuilder<'a> {
    /// Reserves a matrix on the device, or on the host when `gpu` is `None`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(gpu: Option<&'a Gpu>, label: &str, format: &'static dyn Format, rows: usize, columns: usize) -> Result<MatrixBuilder<'a>, GpuError> {
        let bytes = row_bytes(format, columns);
        let mut shards = Vec::new();
        if let Some(gpu) = gpu {
            let limit = gpu.capabilities().max_binding_bytes.min(gpu.capabilities().max_buffer_bytes);
            let widest = bytes.iter().copied().max().unwrap_or(1) as u64;
            let per_shard = ((limit / widest) as usize / SHARD_ROWS * SHARD_ROWS).max(SHARD_ROWS);
            let mut first_row = 0;
            while first_row < rows {
                let count = per_shard.min(rows - first_row);
                let planes = bytes.iter().map(|&n| gpu.allocate(label, (count * n) as u64)).collect::<Result<_, _>>()?;
                shards.push(Shard { first_row, rows: count, planes });
                first_row += count;
            }
        }
        let host = gpu.is_none().then(|| bytes.iter().map(|&n| Vec::with_capacity(rows * n)).collect());
        Ok(MatrixBuilder { gpu, matrix: Matrix { label: label.to_string(), format, rows, columns, shards, host }, filled: 0 })
    }

    /// Appends rows in the matrix's format.
    ///
    /// # Panics
    /// If the rows are of another format or width, or more than were reserved.
    pub fn push(&mut self, rows: &Planes) {
        assert_eq!((rows.format.name(), rows.k), (self.matrix.format.name(), self.matrix.columns), "matrix `{}`: format and width", self.matrix.label);
        if rows.format.is_dense() && !rows.k.is_multiple_of(32) {
            // Dense rows are stored without padding; on the device every row is whole blocks.
            let (from, to) = (rows.format.row_bytes(0, rows.k) as usize, row_bytes(rows.format, rows.k)[0]);
            let mut padded = Vec::with_capacity(rows.rows * to);
            for row in rows.bytes[0].chunks_exact(from) {
                padded.extend_from_slice(row);
                padded.resize(padded.len() + to - from, 0);
            }
            return self.push_bytes(&[&padded]);
        }
        let planes: Vec<&[u8]> = rows.bytes.iter().map(Vec::as_slice).collect();
        self.push_bytes(&planes);
    }

    fn push_bytes(&mut self, planes: &[&[u8]]) {
        let bytes = row_bytes(self.matrix.format, self.matrix.columns);
        let count = planes[0].len() / bytes[0];
        assert!(self.filled + count <= self.matrix.rows, "matrix `{}`: too many rows", self.matrix.label);
        for (plane, &n) in planes.iter().zip(&bytes) {
            assert_eq!(plane.len(), count * n, "matrix `{}`: whole rows", self.matrix.label);
        }
        if let Some(host) = &mut self.matrix.host {
            host.iter_mut().zip(planes).for_each(|(to, from)| to.extend_from_slice(from));
        }
        if let Some(gpu) = self.gpu {
            for shard in &self.matrix.shards {
                let start = self.filled.max(shard.first_row);
                let end = (self.filled + count).min(shard.first_row + shard.rows);
                if start < end {
                    for ((buffer, plane), &n) in shard.planes.iter().zip(planes).zip(&bytes) {
                        write_padded(gpu, buffer, (start - shard.first_row) * n, &plane[(start - self.filled) * n..(end - self.filled) * n]);
                    }
                }
            }
        }
        self.filled += count;
    }

    /// The finished matrix.
    ///
    /// # Panics
    /// If rows are missing.
    pub fn finish(self) -> Arc<Matrix> {
        assert_eq!(self.filled, self.matrix.rows, "matrix `{}`: all rows", self.matrix.label);
        Arc::new(self.matrix)
    }
}

/// Writes bytes whose number may not be a multiple of four; rows are, so only the very end of a plane can be short.
fn write_padded(gpu: &Gpu, buffer: &Buffer, offset: usize, bytes: &[u8]) {
    if bytes.len() % 4 == 0 {
        gpu.write(buffer, offset as u64, bytes);
    } else {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(4), 0);
        gpu.write(buffer, offset as u64, &padded);
    }
}
