//! A data file: its name decides how rows are read; its bytes are on disk or in memory (a browser has no disk).

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use super::{Row, RowError, json, table};
use crate::error::{Result, TrainError};

/// The rows of one file.
pub type Rows = Box<dyn Iterator<Item = Result<Row, RowError>>>;

/// A file with rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataFile {
    /// A file on disk.
    Path(PathBuf),
    /// Bytes in memory.
    Memory {
        /// The name, whose extension decides the file type.
        name: Arc<str>,
        /// The contents.
        bytes: Arc<[u8]>,
    },
}

impl From<PathBuf> for DataFile {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

/// Opens a data file; the extension of its name decides the file type.
///
/// # Errors
/// The extension is unknown, the file cannot be opened, or a table has no valid header.
pub fn open_rows(path: &Path) -> Result<Rows> {
    open_rows_with(path, None)
}

/// As [`open_rows`]; a csv or tsv file has no header line if `columns` names its columns.
///
/// # Errors
/// As [`open_rows`].
pub fn open_rows_with(path: &Path, columns: Option<&[&str]>) -> Result<Rows> {
    DataFile::Path(path.to_owned()).rows_with(columns)
}

impl DataFile {
    /// The name for messages: the path as the user gave it, or the name of the bytes.
    pub fn name(&self) -> Arc<str> {
        match self {
            Self::Path(path) => path.display().to_string().into(),
            Self::Memory { name, .. } => name.clone(),
        }
    }

    /// The rows of the file.
    ///
    /// # Errors
    /// As [`open_rows`].
    pub fn rows(&self) -> Result<Rows> {
        self.rows_with(None)
    }

    fn rows_with(&self, columns: Option<&[&str]>) -> Result<Rows> {
        let file = self.name();
        let lower = file.to_lowercase();
        let (container, gzipped) = match lower.strip_suffix(".gz") {
            Some(inner) => (inner, true),
            None => (lower.as_str(), false),
        };
        if container.ends_with(".parquet") && !gzipped {
            return self.parquet(file);
        }
        let bytes = self.bytes()?;
        let bytes: Box<dyn Read> = if gzipped { Box::new(MultiGzDecoder::new(BufReader::new(bytes))) } else { bytes };
        let mut reader = BufReader::with_capacity(1 << 16, bytes);
        Ok(match container.rsplit('.').next() {
            Some("json") => Box::new(json::JsonRows::new(reader, file)),
            Some("jsonl" | "ndjson") => json::lines_or_array(reader, file)?,
            Some("csv") => {
                let start = reader.fill_buf();
                let start = start.map_err(|source| TrainError::io("read", Path::new(&*file), source))?;
                let delimiter = if columns.is_some() { b',' } else { table::delimiter(start) };
                Box::new(table::CsvRows::new(reader, file, delimiter, columns)?)
            }
            Some("tsv") => Box::new(table::CsvRows::new(reader, file, b'\t', columns)?),
            _ => {
                return Err(TrainError::data(
                    &file,
                    "a name that ends in .json, .jsonl, .csv, .tsv (also with .gz) or .parquet",
                    "another",
                    "rename or convert the file",
                ));
            }
        })
    }

    fn bytes(&self) -> Result<Box<dyn Read>> {
        Ok(match self {
            Self::Path(path) => Box::new(File::open(path).map_err(|source| TrainError::io("open", path, source))?),
            Self::Memory { bytes, .. } => Box::new(Cursor::new(bytes.clone())),
        })
    }

    fn parquet(&self, file: Arc<str>) -> Result<Rows> {
        #[cfg(not(target_arch = "wasm32"))]
        if let Self::Path(path) = self {
            return Ok(Box::new(super::columns::ParquetRows::open(path, file)?));
        }
        let expected = "json, jsonl, csv or tsv; parquet is read from disk only, by the command line";
        Err(TrainError::data(&file, expected, "parquet", "convert the file to jsonl"))
    }
}
