//! Rows of csv and tsv files. A cell is text; where a list is expected, a cell that contains JSON is parsed.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;

use super::{MAX_ROW_BYTES, Row, RowError};
use crate::error::{BadRow, Place, TrainError};

const MAX_COLUMNS: usize = 10_000;

/// A reader that fails after `left` bytes unless the limit is raised: without it, a quote that is never closed would
/// make the parser read the whole file as one cell.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<usize>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::Error::other(format!(
                "a row of more than {MAX_ROW_BYTES} bytes; a quotation mark may be missing"
            )));
        }
        let read = self.inner.read(buffer)?;
        self.left.set(self.left.get().saturating_sub(read));
        Ok(read)
    }
}

/// The delimiter of a csv file: the comma, unless its header line has none and has semicolons (as spreadsheets write
/// where the comma is the decimal sign) or tabs.
pub(super) fn delimiter(start: &[u8]) -> u8 {
    let header = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    [b',', b';', b'\t'].into_iter().find(|delimiter| header.contains(delimiter)).unwrap_or(b',')
}

/// Rows of a csv or tsv file.
pub(super) struct CsvRows<R> {
    reader: csv::Reader<Metered<R>>,
    left: Rc<Cell<usize>>,
    columns: Vec<String>,
    file: Arc<str>,
    done: bool,
}

impl<R: Read> CsvRows<R> {
    /// `columns` names the columns of a file without a header line.
    pub(super) fn new(reader: R, file: Arc<str>, delimiter: u8, columns: Option<&[&str]>) -> Result<Self, TrainError> {
        let left = Rc::new(Cell::new(MAX_ROW_BYTES));
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(columns.is_none())
            .flexible(columns.is_some())
            .from_reader(Metered { inner: reader, left: left.clone() });
        if let Some(columns) = columns {
            let columns = columns.iter().map(|&name| name.to_owned()).collect();
            return Ok(Self { reader, left, columns, file, done: false });
        }
        let remedy = "the first line must name the columns, each once";
        let headers =
            reader.headers().map_err(|error| TrainError::data(&file, "a header line", error.to_string(), remedy))?;
        let columns: Vec<String> =
            headers.iter().map(|name| name.trim_start_matches('\u{FEFF}').trim().to_owned()).collect();
        let distinct: HashSet<&String> = columns.iter().collect();
        if columns.is_empty() || columns.len() > MAX_COLUMNS || distinct.len() != columns.len() {
            let got = format!("{} columns, {} of them distinct", columns.len(), distinct.len());
            return Err(TrainError::data(
                &file,
                format!("1 to {MAX_COLUMNS} columns with distinct names"),
                got,
                remedy,
            ));
        }
        Ok(Self { reader, left, columns, file, done: false })
    }
}

impl<R: Read> Iterator for CsvRows<R> {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        self.left.set(MAX_ROW_BYTES);
        let mut record = csv::StringRecord::new();
        let place = |line: u64| Place { file: self.file.clone(), number: line, unit: "line" };
        match self.reader.read_record(&mut record) {
            Ok(false) => None,
            Ok(true) => {
                let line = record.position().map_or(0, csv::Position::line);
                if record.len() != self.columns.len() {
                    let problem = format!("expected {} cells, got {}", self.columns.len(), record.len());
                    return Some(Err(RowError::Bad(BadRow { place: place(line), field: String::new(), problem })));
                }
                let cells = self.columns.iter().zip(record.iter());
                let fields = cells.map(|(name, cell)| (name.clone(), Value::from(cell))).collect();
                Some(Ok(Row { place: place(line), fields }))
            }
            Err(error) => {
                let line = error.position().map_or_else(|| self.reader.position().line(), csv::Position::line);
                if let csv::ErrorKind::Io(_) = error.kind() {
                    self.done = true;
                    return Some(Err(RowError::Fatal(TrainError::data(
                        &self.file,
                        "csv",
                        error.to_string(),
                        "check the quotation marks",
                    ))));
                }
                let problem = match error.kind() {
                    csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                        format!("expected {expected_len} cells, got {len}")
                    }
                    csv::ErrorKind::Utf8 { .. } => "expected UTF-8 text".to_owned(),
                    _ => error.to_string(),
                };
                Some(Err(RowError::Bad(BadRow { place: place(line), field: String::new(), problem })))
            }
        }
    }
}
