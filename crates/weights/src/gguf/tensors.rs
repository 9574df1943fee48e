//! Rows of a GGUF tensor with Hugging Face's name, shape and order; llama.cpp's conventions are reversed while reading.

use super::blocks::BlockType;
use super::header::TensorInfo;
use crate::checkpoint::{Stored, TensorEntry, read_exact};
use crate::dtype::Dtype;
use crate::error::WeightsError;
use crate::foreign::{Foreign, RowReader};
use crate::formats::Planes;
use crate::source::{LocalFuture, Source};
use std::ops::Range;
use std::rc::Rc;

/// The order of rows in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// Hugging Face's order.
    Same,
    /// The two halves of each head of this size are interleaved, for rotary pairs (2i, 2i + 1).
    Interleaved(usize),
}

/// A transformation of the values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Values {
    /// None.
    #[default]
    Same,
    /// 1 was added (Gemma's norms).
    PlusOne,
    /// −exp was taken (Mamba's A).
    MinusExp,
}

#[derive(Debug)]
struct Blocks {
    file: Rc<str>,
    info: TensorInfo,
    rows: usize,
    k: usize,
    order: RowOrder,
    values: Values,
}

/// The entry for a tensor of `file`, with the name `name` and a `shape` of as many values.
pub(super) fn entry(
    file: &Rc<str>,
    info: &TensorInfo,
    name: String,
    shape: Vec<usize>,
    order: RowOrder,
    values: Values,
) -> TensorEntry {
    let dense = match info.kind {
        BlockType::F32 => Some(Dtype::F32),
        BlockType::F16 => Some(Dtype::F16),
        BlockType::BF16 => Some(Dtype::Bf16),
        _ => None,
    };
    let offsets = if dense.is_some() { vec![info.offset] } else { Vec::new() };
    let kind = info.kind;
    let stored = dense.map_or(
        Stored::Foreign(Foreign { name: kind.name(), native: kind.native(), change: kind.change() }),
        Stored::Dense,
    );
    let mut entry = TensorEntry { name, shape, stored, file: file.clone(), offsets, reader: None };
    if dense.is_none() || order != RowOrder::Same || values != Values::Same {
        let blocks = Blocks { file: file.clone(), info: info.clone(), rows: entry.rows(), k: entry.k(), order, values };
        entry.reader = Some(Rc::new(blocks));
    }
    entry
}

impl Blocks {
    fn row_bytes(&self) -> usize {
        self.k / self.info.kind.block() * self.info.kind.bytes()
    }

    /// Stored bytes of the rows, in Hugging Face's order.
    async fn bytes(&self, source: &dyn Source, rows: &Range<usize>) -> Result<Vec<u8>, WeightsError> {
        let row = self.row_bytes();
        let RowOrder::Interleaved(head) = self.order else {
            return read_exact(
                source,
                &self.file,
                self.info.offset + (rows.start * row) as u64,
                (rows.len() * row) as u64,
            )
            .await;
        };
        // Whole heads are read, because a row may be anywhere in its head.
        let (first, last) = (rows.start / head * head, rows.end.next_multiple_of(head).min(self.rows));
        let bytes =
            read_exact(source, &self.file, self.info.offset + (first * row) as u64, ((last - first) * row) as u64)
                .await?;
        let mut out = Vec::with_capacity(rows.len() * row);
        for wanted in rows.clone() {
            let at = interleaved(wanted, head) - first;
            out.extend_from_slice(&bytes[at * row..(at + 1) * row]);
        }
        Ok(out)
    }

    async fn values(&self, source: &dyn Source, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let vector = self.rows == 1;
        let mut out = vec![0.0; rows.len() * self.k];
        let bytes = if vector {
            read_exact(source, &self.file, self.info.offset, (rows.len() * self.row_bytes()) as u64).await?
        } else {
            self.bytes(source, &rows).await?
        };
        self.info.kind.decode(&bytes, &mut out);
        if let (true, RowOrder::Interleaved(head)) = (vector, self.order) {
            out = (0..out.len()).map(|i| out[interleaved(i, head)]).collect();
        }
        match self.values {
            Values::Same => {}
            Values::PlusOne => out.iter_mut().for_each(|value| *value -= 1.0),
            Values::MinusExp => out.iter_mut().for_each(|value| *value = (-*value).ln()),
        }
        Ok(out)
    }
}

/// The position of Hugging Face's row in a file with interleaved halves of heads.
pub(super) fn interleaved(row: usize, head: usize) -> usize {
    let (start, within) = (row / head * head, row % head);
    let (half, index) = (within / (head / 2), within % (head / 2));
    start + 2 * index + half
}

impl RowReader for Blocks {
    fn size_bytes(&self) -> u64 {
        self.info.size_bytes
    }

    fn read_f32<'a>(
        &'a self,
        source: &'a dyn Source,
        _: &'a str,
        rows: Range<usize>,
    ) -> LocalFuture<'a, Result<Vec<f32>, WeightsError>> {
        Box::pin(self.values(source, rows))
    }

    fn read_planes<'a>(
        &'a self,
        source: &'a dyn Source,
        tensor: &'a str,
        rows: Range<usize>,
    ) -> LocalFuture<'a, Result<Option<Planes>, WeightsError>> {
        Box::pin(async move {
            let kind = self.info.kind;
            if kind == BlockType::Q2_K || kind.block() == 1 || self.values != Values::Same {
                return Ok(None);
            }
            let bytes = self.bytes(source, &rows).await?;
            let mut planes = Planes::new(kind.native(), self.k);
            for (number, row) in bytes.chunks_exact(self.row_bytes().max(1)).enumerate() {
                kind.push_planes(row, &mut planes.bytes).map_err(|error| WeightsError::Unrepresentable {
                    tensor: tensor.to_owned(),
                    index: ((rows.start + number) * self.k + error.index) as u64,
                    value: error.value,
                    format: kind.native().name(),
                })?;
            }
            planes.rows = rows.len();
            Ok(Some(planes))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::interleaved;

    #[test]
    fn halves_of_a_head_are_interleaved() {
        let order: Vec<usize> = (0..8).map(|row| interleaved(row, 4)).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
