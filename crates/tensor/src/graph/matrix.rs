//! A weight matrix on the device: the planes of its format, sharded by rows where one binding cannot cover it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bayan_gpu::{Buffer, Gpu, GpuError, Slice};
use bayan_weights::{F32, Format, Planes};

use super::host::HostRows;
use super::state::State;
use crate::cpu::Cpu;
use crate::cpu::helpers::Divided;

/// Every shard starts at a multiple of this many rows, so that no workgroup needs rows of two shards.
pub const SHARD_ROWS: usize = 256;

/// A range of a matrix's rows, stored together.
#[derive(Debug, Clone)]
pub struct Shard {
    /// First row.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// The shard's format. The shards of a stacked matrix may have different ones.
    pub format: &'static dyn Format,
    planes: Vec<Slice>,
}

impl Shard {
    /// The planes as bindings, in the format's order.
    pub fn planes(&self) -> Vec<Slice> {
        self.planes.clone()
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
    /// The rows in host memory: all, or the first ones where `divided` has the others.
    host: Option<HostRows>,
    divided: Option<Divided>,
    trained: Option<Trained>,
    /// For a stacked matrix: its parts, each with its first row.
    parts: Vec<(usize, Arc<Matrix>)>,
}

/// Where a trained matrix stores its values.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The whole matrix in packed order: [`packed_len`] values.
    pub state: Arc<State>,
    /// The row of `state` that is row 0 of this matrix; a multiple of `SHARD_ROWS`.
    pub first_row: usize,
}

impl Matrix {
    /// A matrix without storage, which must never be run: for describing a model by names and sizes alone.
    pub fn without_storage(label: &str, rows: usize, columns: usize) -> Arc<Matrix> {
        Arc::new(Matrix::empty(label, &F32, rows, columns, Vec::new()))
    }

    /// A matrix on the devices of its shards only.
    fn empty(label: &str, format: &'static dyn Format, rows: usize, columns: usize, shards: Vec<Shard>) -> Matrix {
        let (label, parts) = (label.to_string(), Vec::new());
        Matrix { label, format, rows, columns, shards, host: None, divided: None, trained: None, parts }
    }

    /// Stacks matrices of equal width by rows, in order. Nothing is copied and each part keeps its format.
    ///
    /// # Panics
    /// If `parts` is empty, the widths differ, or a part other than the last has a row count that is no multiple of 32.
    pub fn stacked(parts: Vec<Arc<Matrix>>) -> Arc<Matrix> {
        let (first, columns) = (&parts[0], parts[0].columns);
        let (label, format) = (first.label.clone(), first.format);
        let (mut rows, mut shards, mut stacked) = (0, Vec::new(), Vec::new());
        for part in &parts {
            assert!(
                part.columns == columns && rows % GROUP == 0,
                "matrix `{label}`: parts of {columns} columns and multiples of {GROUP} rows"
            );
            shards.extend(part.shards.iter().map(|shard| Shard { first_row: rows + shard.first_row, ..shard.clone() }));
            stacked.push((rows, part.clone()));
            rows += part.rows;
        }
        Arc::new(Matrix { parts: stacked, ..Matrix::empty(&label, format, rows, columns, shards) })
    }

    /// The name, for error messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The matrix's format; for a stacked matrix, that of the first part.
    pub fn format(&self) -> &'static dyn Format {
        self.format
    }

    /// Whether any of the rows are stored unquantized.
    pub fn has_dense_rows(&self) -> bool {
        if self.parts.is_empty() {
            self.format.is_dense()
        } else {
            self.parts.iter().any(|(_, part)| part.has_dense_rows())
        }
    }

    /// Whether `holds` is true for the format of every row.
    pub(crate) fn all_rows(&self, holds: fn(&dyn Format) -> bool) -> bool {
        if self.parts.is_empty() { holds(self.format) } else { self.parts.iter().all(|(_, part)| part.all_rows(holds)) }
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

    /// Whether the matrix is on this device.
    pub fn is_on(&self, gpu: &Gpu) -> bool {
        self.shards.iter().flat_map(|shard| &shard.planes).next().is_some_and(|plane| gpu.owns(&plane.buffer))
    }

    /// Where the values are stored, if the matrix is trained.
    pub fn trained(&self) -> Option<&Trained> {
        self.trained.as_ref()
    }

    /// Bytes of all planes, on a device or on the host.
    pub fn size_bytes(&self) -> u64 {
        let on_device: u64 = self.shards.iter().flat_map(|s| &s.planes).map(|plane| plane.size_bytes).sum();
        on_device + self.host_bytes() + self.parts.iter().map(|(_, part)| part.host_bytes()).sum::<u64>()
    }

    /// Bytes in the memory of the host and of helpers.
    fn host_bytes(&self) -> u64 {
        let own = self.host.as_ref().map_or(0, HostRows::size_bytes);
        let row: usize = row_bytes(self.format, self.columns).iter().sum();
        own + self.divided.as_ref().map_or(0, |divided| ((self.rows - divided.own_rows()) * row) as u64)
    }

    /// The rows in host memory, if they are there and not trained or stacked.
    pub(crate) fn host_rows(&self) -> Option<&HostRows> {
        self.host.as_ref()
    }

    /// Where the rows are that helpers of the CPU keep, if there are any.
    pub(crate) fn divided(&self) -> Option<&Divided> {
        self.divided.as_ref()
    }

    /// For a stacked matrix: its parts, each with its first row; otherwise none.
    pub(crate) fn parts(&self) -> &[(usize, Arc<Matrix>)] {
        &self.parts
    }

    /// Bytes copied from host memory each time the matrix is used; 0 if it stays on the device.
    pub fn streamed_bytes(&self) -> u64 {
        self.shards
            .iter()
            .flat_map(|s| &s.planes)
            .filter_map(|plane| plane.contents.as_ref())
            .map(|contents| contents.len() as u64)
            .sum()
    }

    /// A view of some rows as a matrix of its own; it shares the memory.
    ///
    /// # Panics
    /// If the first row is not a multiple of `SHARD_ROWS`.
    pub fn rows_view(matrix: &Arc<Matrix>, rows: Range<usize>) -> Arc<Matrix> {
        if rows == (0..matrix.rows) {
            return matrix.clone();
        }
        assert!(
            rows.start.is_multiple_of(SHARD_ROWS) && rows.start < rows.end && rows.end <= matrix.rows,
            "matrix `{}`: rows {rows:?}",
            matrix.label
        );
        assert!(
            matrix.parts.is_empty() && matrix.divided.is_none(),
            "matrix `{}`: rows of one that is stacked or divided",
            matrix.label
        );
        let bytes = row_bytes(matrix.format, matrix.columns);
        let mut shards = Vec::new();
        for shard in &matrix.shards {
            let (start, end) = (rows.start.max(shard.first_row), rows.end.min(shard.first_row + shard.rows));
            if start < end {
                let padded = (end - start).next_multiple_of(GROUP);
                let part = |(plane, &n): (&Slice, &usize)| {
                    let slice = plane
                        .buffer
                        .slice(plane.offset_bytes + ((start - shard.first_row) * n) as u64, (padded * n) as u64);
                    Slice { contents: plane.contents.clone(), ..slice }
                };
                shards.push(Shard {
                    first_row: start - rows.start,
                    rows: end - start,
                    format: shard.format,
                    planes: shard.planes.iter().zip(&bytes).map(part).collect(),
                });
            }
        }
        let host = matrix.host.as_ref().map(|host| host.rows(rows.clone()));
        let trained =
            matrix.trained.as_ref().map(|t| Trained { state: t.state.clone(), first_row: t.first_row + rows.start });
        let view = Matrix::empty(&matrix.label, matrix.format, rows.len(), matrix.columns, shards);
        Arc::new(Matrix { host, trained, ..view })
    }

    /// Row `row` as f32, from host memory.
    ///
    /// # Panics
    /// If the matrix is only on the device.
    pub fn host_row(&self, row: usize, out: &mut Vec<f32>) {
        if let Some(Trained { state, first_row }) = &self.trained {
            let read = state.with_host(|values| {
                *out = unpacked_rows(values.f32(), first_row + row..first_row + row + 1, self.columns)
            });
            return read.unwrap_or_else(|| panic!("matrix `{}` is not on the host", self.label));
        }
        if let Some((first, part)) = self.parts.iter().rfind(|(first, _)| *first <= row) {
            return part.host_row(row - first, out);
        }
        let host = self.host.as_ref().unwrap_or_else(|| panic!("matrix `{}` is not on the host", self.label));
        out.resize(self.columns.next_multiple_of(32), 0.0);
        match &self.divided {
            Some(divided) if row >= divided.own_rows() => divided.row(row, out),
            _ => host.dequantize(self.format, row, out),
        }
        out.truncate(self.columns);
    }
}

/// Bytes of one row in each plane on the device. There, every row is padded to whole 32-blocks.
pub fn row_bytes(format: &dyn Format, columns: usize) -> Vec<usize> {
    let columns = columns.next_multiple_of(32);
    (0..format.planes().len()).map(|plane| format.row_bytes(plane, columns) as usize).collect()
}

/// The rows of each shard.
fn shard_rows(gpu: &Gpu, format: &dyn Format, rows: usize, columns: usize) -> Vec<Range<usize>> {
    let limit = gpu.capabilities().max_binding_bytes.min(gpu.capabilities().max_buffer_bytes);
    let widest = row_bytes(format, columns).into_iter().max().unwrap_or(1) as u64;
    let per_shard = ((limit / widest) as usize / SHARD_ROWS * SHARD_ROWS).max(SHARD_ROWS);
    (0..rows).step_by(per_shard).map(|first| first..(first + per_shard).min(rows)).collect()
}

/// Fills a matrix with consecutive rows as they are read.
pub struct MatrixBuilder<'a> {
    gpu: Option<&'a Gpu>,
    matrix: Matrix,
    /// Rows received.
    filled: usize,
    /// Rows written to the matrix.
    emitted: usize,
    /// Rows received but not yet written, for each plane.
    pending: Vec<Vec<u8>>,
    /// For a streamed matrix: the contents of each shard's planes.
    streamed: Option<Vec<Vec<Vec<u8>>>>,
}

/// Buffers shared by matrices of equal sizes and format; see [`MatrixBuilder::streamed`].
#[derive(Debug, Default)]
pub struct Slots(HashMap<(String, &'static str, usize, usize), Vec<Vec<Buffer>>>);

impl<'a> MatrixBuilder<'a> {
    /// Reserves a matrix on the device, or on the host when `gpu` is `None`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        gpu: Option<&'a Gpu>,
        label: &str,
        format: &'static dyn Format,
        rows: usize,
        columns: usize,
    ) -> Result<MatrixBuilder<'a>, GpuError> {
        let bytes = row_bytes(format, columns);
        let mut shards = Vec::new();
        if let Some(gpu) = gpu {
            for range in shard_rows(gpu, format, rows, columns) {
                let padded = range.len().next_multiple_of(GROUP);
                let planes = bytes
                    .iter()
                    .map(|&n| gpu.allocate(label, (padded * n) as u64).map(|buffer| buffer.whole()))
                    .collect::<Result<_, _>>()?;
                shards.push(Shard { first_row: range.start, rows: range.len(), format, planes });
            }
        }
        let host = gpu.is_none().then(|| HostRows::new(format, rows, columns));
        let pending = vec![Vec::new(); bytes.len()];
        let matrix = Matrix { host, ..Matrix::empty(label, format, rows, columns, shards) };
        Ok(MatrixBuilder { gpu, matrix, filled: 0, emitted: 0, pending, streamed: None })
    }

    /// A matrix on the host for a CPU, whose helpers get a part of the rows if there are any.
    pub fn on_cpu(
        cpu: &Cpu,
        label: &str,
        format: &'static dyn Format,
        rows: usize,
        columns: usize,
    ) -> MatrixBuilder<'a> {
        let divided = cpu.helpers().and_then(|helpers| helpers.divide(format, rows, columns));
        let own = divided.as_ref().map_or(rows, Divided::own_rows);
        let host = Some(HostRows::new(format, own, columns));
        let matrix = Matrix { host, divided, ..Matrix::empty(label, format, rows, columns, Vec::new()) };
        let pending = vec![Vec::new(); row_bytes(format, columns).len()];
        MatrixBuilder { gpu: None, matrix, filled: 0, emitted: 0, pending, streamed: None }
    }

    /// An f32 matrix whose values are stored in `state`, which has [`packed_len`] elements, on the device or on the
    /// host.
    ///
    /// # Errors
    /// One binding of the device cannot cover the matrix.
    ///
    /// # Panics
    /// If the state has another length.
    pub fn trained(
        gpu: Option<&'a Gpu>,
        label: &str,
        rows: usize,
        columns: usize,
        state: &Arc<State>,
    ) -> Result<MatrixBuilder<'a>, GpuError> {
        assert_eq!(state.shape(), [packed_len(rows, columns)], "matrix `{label}`: size of the state");
        let mut shards = Vec::new();
        if let Some(gpu) = gpu {
            let limit = gpu.capabilities().max_binding_bytes;
            if state.size_bytes() > limit {
                let reason = format!(
                    "its gradient has {} bytes in one binding, and this device binds {limit} at most",
                    state.size_bytes()
                );
                return Err(GpuError::Kernel { kernel: format!("training of `{label}`"), reason });
            }
            shards.push(Shard {
                first_row: 0,
                rows,
                format: &F32,
                planes: vec![state.buffer().slice(state.offset_bytes(), state.size_bytes())],
            });
        }
        let trained = Some(Trained { state: state.clone(), first_row: 0 });
        let matrix = Matrix { trained, ..Matrix::empty(label, &F32, rows, columns, shards) };
        Ok(MatrixBuilder { gpu, matrix, filled: 0, emitted: 0, pending: vec![Vec::new()], streamed: None })
    }

    /// A matrix that stays in host memory and is copied to the device whenever a kernel reads it. Matrices with the
    /// same `slot`, format and sizes share their device buffers.
    ///
    /// # Errors
    /// Out of memory.
    pub fn streamed(
        gpu: &'a Gpu,
        slots: &mut Slots,
        slot: &str,
        label: &str,
        format: &'static dyn Format,
        rows: usize,
        columns: usize,
    ) -> Result<MatrixBuilder<'a>, GpuError> {
        let key = (slot.to_string(), format.name(), rows, columns);
        let mut builder = match slots.0.get(&key) {
            None => MatrixBuilder::new(Some(gpu), label, format, rows, columns)?,
            Some(buffers) => {
                let firsts = shard_rows(gpu, format, rows, columns);
                let shards = firsts.into_iter().zip(buffers).map(|(rows, planes)| Shard {
                    first_row: rows.start,
                    rows: rows.len(),
                    format,
                    planes: planes.iter().map(Buffer::whole).collect(),
                });
                let matrix = Matrix::empty(label, format, rows, columns, shards.collect());
                let pending = vec![Vec::new(); row_bytes(format, columns).len()];
                MatrixBuilder { gpu: Some(gpu), matrix, filled: 0, emitted: 0, pending, streamed: None }
            }
        };
        let planes = |shard: &Shard| shard.planes.iter().map(|plane| plane.buffer.clone()).collect();
        slots.0.entry(key).or_insert_with(|| builder.matrix.shards.iter().map(planes).collect());
        let room = |shard: &Shard| shard.planes.iter().map(|plane| vec![0; plane.size_bytes as usize]).collect();
        builder.streamed = Some(builder.matrix.shards.iter().map(room).collect());
        Ok(builder)
    }

    /// Appends rows in the matrix's format.
    ///
    /// # Panics
    /// If the rows are of another format or width, or more than were reserved.
    pub fn push(&mut self, rows: &Planes) {
        let matrix = &self.matrix;
        assert_eq!(
            (rows.format.name(), rows.k),
            (matrix.format.name(), matrix.columns),
            "matrix `{}`: format and width",
            matrix.label
        );
        assert!(self.filled + rows.rows <= matrix.rows, "matrix `{}`: too many rows", matrix.label);
        let to = row_bytes(matrix.format, matrix.columns);
        for (plane, (bytes, &to)) in rows.bytes.iter().zip(&to).enumerate() {
            let from = matrix.format.row_bytes(plane, rows.k) as usize;
            for row in bytes.chunks_exact(from).take(rows.rows) {
                // Dense rows arrive without padding; on the device every row is padded to whole 32-blocks.
                self.pending[plane].extend_from_slice(row);
                let padded = self.pending[plane].len() + to - from;
                self.pending[plane].resize(padded, 0);
            }
        }
        self.filled += rows.rows;
        self.emit(self.filled == self.matrix.rows);
    }

    /// Writes the complete groups of pending rows; at the end also the last incomplete group, padded with zero rows.
    fn emit(&mut self, last: bool) {
        let bytes = row_bytes(self.matrix.format, self.matrix.columns);
        let pending = self.pending[0].len() / bytes[0];
        let count = if last { pending } else { pending / GROUP * GROUP };
        if count == 0 {
            return;
        }
        for (plane, &n) in bytes.iter().enumerate() {
            let mut rows: Vec<u8> = self.pending[plane].drain(..count * n).collect();
            if let Some(host) = &mut self.matrix.host {
                let own = self.matrix.divided.as_ref().map_or(self.matrix.rows, Divided::own_rows);
                let kept = own.saturating_sub(self.emitted).min(count) * n;
                host.write(plane, self.emitted, &rows[..kept]);
            }
            if let Some(divided) = &self.matrix.divided {
                divided.write(plane, self.emitted, &rows, n);
            }
            if self.gpu.is_none() && self.matrix.trained.is_none() {
                continue;
            }
            rows.resize(count.next_multiple_of(GROUP) * n, 0);
            let interleaved = interleave(&rows, n, &parts(self.matrix.format, plane));
            if let Some(trained) = &self.matrix.trained {
                trained.state.write(self.gpu, self.emitted * n / 4, &interleaved);
                continue;
            }
            let Some(gpu) = self.gpu else { continue };
            for (number, shard) in self.matrix.shards.iter().enumerate() {
                let start = self.emitted.max(shard.first_row);
                let end = (self.emitted + count).min(shard.first_row + shard.rows).next_multiple_of(GROUP);
                if start < end && start < shard.first_row + shard.rows {
                    let range = (start - self.emitted) * n..(end - self.emitted) * n;
                    let at = (start - shard.first_row) * n;
                    match &mut self.streamed {
                        Some(streamed) => {
                            streamed[number][plane][at..at + range.len()].copy_from_slice(&interleaved[range])
                        }
                        None => gpu.write(&shard.planes[plane].buffer, at as u64, &interleaved[range]),
                    }
                }
            }
        }
        self.emitted += count;
    }

    /// The matrix without values, on a device on which nothing runs.
    pub fn without_values(self) -> Arc<Matrix> {
        Arc::new(self.matrix)
    }

    /// The finished matrix.
    ///
    /// # Panics
    /// If rows are missing.
    pub fn finish(mut self) -> Arc<Matrix> {
        assert_eq!(self.filled, self.matrix.rows, "matrix `{}`: all rows", self.matrix.label);
        for (shard, planes) in self.matrix.shards.iter_mut().zip(self.streamed.into_iter().flatten()) {
            for (plane, bytes) in shard.planes.iter_mut().zip(planes) {
                plane.contents = Some(Arc::new(bytes));
            }
        }
        Arc::new(self.matrix)
    }
}

/// Rows are stored in groups of this many: one block of every row of the group, then the next block. Invocations that
/// own neighbouring rows then read neighbouring words, and no sum over invocations is needed for a row.
pub const GROUP: usize = 32;

/// Sizes of the parts in which kernels load a unit of a plane ([`bayan_weights::PlaneSpec::apart`]).
fn parts(format: &dyn Format, plane: usize) -> Vec<usize> {
    let spec = &format.planes()[plane];
    let unit = format.row_bytes(plane, 32) as usize;
    if spec.apart == 0 {
        return vec![unit.min(16); unit.div_ceil(16)];
    }
    let mut parts = vec![4; 1 + (unit - spec.apart) / 4];
    parts[0] = spec.apart;
    parts
}

/// Reorders row-major bytes into groups: `[group][block][part][row of the group]`, where `parts` are the sizes of the
/// parts of a block, or of 8 blocks.
fn interleave(rows: &[u8], row_bytes: usize, parts: &[usize]) -> Vec<u8> {
    let mut out = vec![0; rows.len()];
    for (from, to) in rows.chunks_exact(GROUP * row_bytes).zip(out.chunks_exact_mut(GROUP * row_bytes)) {
        let (mut start, mut sizes) = (0, parts.iter().cycle());
        while let Some(&part) = sizes.next().filter(|_| start < row_bytes) {
            for (r, row) in from.chunks_exact(row_bytes).enumerate() {
                let at = GROUP * start + r * part;
                to[at..at + part].copy_from_slice(&row[start..start + part]);
            }
            start += part;
        }
    }
    out
}

/// Number of values that a trained matrix stores in packed order, padding included.
pub fn packed_len(rows: usize, columns: usize) -> usize {
    rows.next_multiple_of(GROUP) * columns.next_multiple_of(32)
}

/// Index of a row and column within a trained matrix's packed values.
fn packed_at(row: usize, column: usize, columns: usize) -> usize {
    let width = columns.next_multiple_of(32);
    row / GROUP * GROUP * width + column / 4 * 4 * GROUP + row % GROUP * 4 + column % 4
}

/// Rows of a trained matrix, row-major and without padding.
pub fn unpacked_rows(packed: &[f32], rows: Range<usize>, columns: usize) -> Vec<f32> {
    rows.flat_map(|row| (0..columns).map(move |column| packed_at(row, column, columns))).map(|at| packed[at]).collect()
}

/// Copies row-major, unpadded values into a trained matrix's packed values, from `first_row` on.
///
/// # Panics
/// If the values are not whole rows, or more rows than the matrix has.
pub fn pack_rows(values: &[f32], first_row: usize, columns: usize, packed: &mut [f32]) {
    assert!(values.len().is_multiple_of(columns), "whole rows");
    for (index, row) in values.chunks_exact(columns).enumerate() {
        row.iter()
            .enumerate()
            .for_each(|(column, &value)| packed[packed_at(first_row + index, column, columns)] = value);
    }
}
