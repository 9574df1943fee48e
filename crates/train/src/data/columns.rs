//! Rows of parquet files, read row by row with the reference implementation without arrow.
//!
//! Its decoder may panic on damaged pages, so the calls run inside `catch_unwind`. A panic ends a WebAssembly module;
//! for that reason browsers do not read parquet.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::file::reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use serde_json::{Map, Value};

use super::{Row, RowError};
use crate::error::{Place, TrainError};

/// Rows of a parquet file.
pub(super) struct ParquetRows {
    rows: Option<RowIter<'static>>,
    file: Arc<str>,
    number: u64,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, file: Arc<str>) -> Result<Self, TrainError> {
        let handle = File::open(path).map_err(|source| TrainError::io("open", path, source))?;
        let opened = guarded(|| SerializedFileReader::new(handle).map(|reader| reader.into_iter()));
        let rows = opened.map_err(|problem| damaged(&file, problem))?;
        Ok(Self { rows: Some(rows), file, number: 0 })
    }
}

fn damaged(file: &str, problem: String) -> TrainError {
    TrainError::data(
        file,
        "a parquet file (uncompressed, snappy or gzip)",
        problem,
        "write it again, or convert it to jsonl",
    )
}

/// Runs a decoder that may fail or panic on damaged bytes.
fn guarded<T>(decode: impl FnOnce() -> Result<T, parquet::errors::ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("pages that cannot be decoded".to_owned()),
    }
}

impl Iterator for ParquetRows {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.rows.as_mut()?;
        self.number += 1;
        let decoded = guarded(|| rows.next().transpose().map(|row| row.map(|row| row.to_json_value())));
        match decoded {
            Ok(None) => None,
            Ok(Some(value)) => {
                let fields = if let Value::Object(fields) = value { fields } else { Map::new() };
                Some(Ok(Row { place: Place { file: self.file.clone(), number: self.number, unit: "row" }, fields }))
            }
            Err(problem) => {
                self.rows = None;
                Some(Err(RowError::Fatal(damaged(&self.file, format!("{problem} at row {}", self.number)))))
            }
        }
    }
}
