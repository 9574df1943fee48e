//! From data files to examples: file types (json, jsonl, csv, tsv, parquet; all but parquet also gzipped), row shapes,
//! and counts.
//!
//! Rows stream one at a time through one iterator, whatever the file type. The first row determines the shape and every
//! later row must have it, so that a file that mixes two shapes is an error instead of half a data set. Rejected for
//! that reason: detecting the shape of each row.

#[cfg(not(target_arch = "wasm32"))]
mod columns;
mod file;
mod json;
mod messages;
mod preference;
mod report;
mod shapes;
mod table;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{BadRow, Place, Result, TrainError, nearest};
use crate::recipe::Method;
pub use file::{DataFile, Rows, open_rows, open_rows_with};
pub(crate) use messages::role;
pub use report::{DataReport, DropReason};
pub use shapes::{COLUMN_NAMES, Shape};

/// A longer row is refused: no real data set has one, and the limit bounds the memory that a damaged file takes.
const MAX_ROW_BYTES: usize = 64 << 20;

/// One row as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its place in the file.
    pub place: Place,
    /// Its fields.
    pub fields: Map<String, Value>,
}

/// Why a row could not be read.
#[derive(Debug)]
pub enum RowError {
    /// This row is wrong; reading may continue with the next.
    Bad(BadRow),
    /// The rest of the file cannot be read.
    Fatal(TrainError),
}

fn parse_object(place: Place, bytes: &[u8]) -> Result<Row, RowError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => Ok(Row { place, fields }),
        Ok(_) => Err(RowError::Bad(BadRow {
            place,
            field: String::new(),
            problem: "expected a JSON object, got another value".into(),
        })),
        Err(error) => Err(json::not_json(place, bytes, &error)),
    }
}

/// The files of a data set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataFiles {
    /// Training files.
    pub train: Vec<PathBuf>,
    /// Evaluation files; may be empty.
    pub valid: Vec<PathBuf>,
}

impl DataFiles {
    /// Takes a file, or a directory with `train*` files and optional `valid*`, `validation*`, `eval*` or `dev*` files
    /// (the layout of mlx_lm and the Hub). Files are sorted by name.
    ///
    /// # Errors
    /// The path does not exist, or the directory has no training files.
    pub fn find(path: &Path) -> Result<Self> {
        let data = std::fs::metadata(path).map_err(|source| TrainError::io("open", path, source))?;
        if !data.is_dir() {
            return Ok(Self { train: vec![path.to_owned()], valid: vec![] });
        }
        let mut found = Self::default();
        let mut files = vec![];
        for entry in std::fs::read_dir(path).map_err(|source| TrainError::io("list", path, source))? {
            files.push(entry.map_err(|source| TrainError::io("list", path, source))?.path());
        }
        files.sort();
        let endings = [
            ".json",
            ".jsonl",
            ".ndjson",
            ".csv",
            ".tsv",
            ".parquet",
            ".json.gz",
            ".jsonl.gz",
            ".csv.gz",
            ".tsv.gz",
            ".ndjson.gz",
        ];
        for file in files {
            let name = file.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
            if !endings.iter().any(|ending| name.ends_with(ending)) {
                continue;
            }
            if name.starts_with("train") {
                found.train.push(file);
            } else if ["valid", "eval", "dev"].iter().any(|start| name.starts_with(start)) {
                found.valid.push(file);
            }
        }
        if found.train.is_empty() {
            let shown = path.display().to_string();
            return Err(TrainError::data(
                &shown,
                "a file train.jsonl (or .json, .csv, .parquet, …)",
                "none",
                "name the file itself, or call it train.jsonl",
            ));
        }
        Ok(found)
    }
}

/// What one row is trained as.
#[derive(Debug, Clone, PartialEq)]
pub enum Example {
    /// A conversation.
    Chat {
        /// Objects with `role` and `content`, as chat templates take them.
        messages: Vec<Value>,
        /// Tools as JSON schemas.
        tools: Option<Vec<Value>>,
        /// Whether each message is trained: answers of the assistant, except those before a completion and those that
        /// the data marks with weight 0 or train false.
        trained: Vec<bool>,
    },
    /// Plain text; all of it is trained.
    Text(String),
    /// Two answers to the same conversation, the first preferred.
    Preference {
        /// The conversation before the answers.
        prompt: Vec<Value>,
        /// The better answer's messages.
        chosen: Vec<Value>,
        /// The worse answer's messages.
        rejected: Vec<Value>,
        /// Tools as JSON schemas.
        tools: Option<Vec<Value>>,
    },
}

/// How rows are read.
#[derive(Debug, Clone, Default)]
pub struct DataOptions {
    /// sft or dpo: decides which shapes are considered.
    pub method: Method,
    /// The shape of the rows; detected on the first row when absent.
    pub shape: Option<Shape>,
    /// Maps our column names ([`COLUMN_NAMES`]) to the file's; the other columns keep their names.
    pub columns: Vec<(String, String)>,
    /// Count bad rows instead of stopping at the first.
    pub skip_bad: bool,
    /// Leave out `system` messages, for templates that refuse them (axolotl's `drop_system_message`).
    pub drop_system_message: bool,
    /// Stop after this many rows.
    pub limit: Option<u64>,
}

impl DataOptions {
    /// Reads a `--columns` map: `prompt=question,response=answer`.
    ///
    /// # Errors
    /// A part that is not `name=column`, or a name that is not ours.
    pub fn parse_columns(text: &str) -> Result<Vec<(String, String)>> {
        let known = COLUMN_NAMES.join(", ");
        let pairs = text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| {
            let pair = part
                .split_once('=')
                .map(|(ours, theirs)| (ours.trim(), theirs.trim()))
                .filter(|(a, b)| !a.is_empty() && !b.is_empty());
            let Some((ours, theirs)) = pair else {
                return Err(TrainError::recipe(
                    "columns",
                    "name=column pairs, as in prompt=question,response=answer",
                    part,
                    format!("the names are {known}"),
                ));
            };
            if COLUMN_NAMES.contains(&ours) {
                return Ok((ours.to_owned(), theirs.to_owned()));
            }
            let near = nearest(ours, COLUMN_NAMES.iter().copied())
                .map(|n| format!("did you mean `{n}`? "))
                .unwrap_or_default();
            Err(TrainError::recipe(
                "columns",
                format!("one of {known} before the ="),
                ours,
                format!("{near}write our name first, the file's column second"),
            ))
        });
        pairs.collect()
    }
}

/// Examples of several files, one after another, with counts.
pub struct Examples {
    files: VecDeque<DataFile>,
    rows: Option<Rows>,
    options: DataOptions,
    shape: Option<Shape>,
    /// Counts of the rows read so far.
    pub report: DataReport,
    failed: bool,
}

impl std::fmt::Debug for Examples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Examples")
            .field("files", &self.files)
            .field("shape", &self.shape)
            .field("read", &self.report.read)
            .finish()
    }
}

impl Examples {
    /// Examples of these files. Nothing is opened yet.
    pub fn new<F: Clone + Into<DataFile>>(files: &[F], options: DataOptions) -> Self {
        let shape = options.shape;
        Self {
            files: files.iter().cloned().map(Into::into).collect(),
            rows: None,
            options,
            shape,
            report: DataReport::default(),
            failed: false,
        }
    }

    /// The shape of the rows, known once the first row was read.
    pub fn shape(&self) -> Option<Shape> {
        self.shape
    }

    /// The next row of any file.
    fn next_row(&mut self) -> Option<Result<Row, RowError>> {
        loop {
            if let Some(rows) = &mut self.rows {
                if let Some(row) = rows.next() {
                    return Some(row);
                }
                self.rows = None;
            }
            match self.files.pop_front()?.rows() {
                Ok(rows) => self.rows = Some(rows),
                Err(error) => return Some(Err(RowError::Fatal(error))),
            }
        }
    }

    fn read(&mut self, row: Row) -> Result<Result<Example, DropReason>> {
        let Row { place, mut fields } = row;
        let bad = |field: &str, problem: String| {
            TrainError::Row(BadRow { place: place.clone(), field: field.to_owned(), problem })
        };
        let mut mapped = Map::new();
        for (ours, theirs) in &self.options.columns {
            let Some(value) = fields.get(theirs) else {
                let there = shapes::field_names(&fields);
                return Err(bad(theirs, format!("expected this column, since --columns names it; there are {there}")));
            };
            mapped.insert(shapes::canonical(ours).to_owned(), value.clone());
        }
        // The other columns keep their names. The mapped ones alone decide the shape if they can.
        fields.retain(|name, _| self.options.columns.iter().all(|(_, theirs)| theirs != name));
        fields.extend(mapped.clone());
        let shape = match self.shape {
            Some(shape) => shape,
            None => {
                let method = self.options.method;
                let found = Shape::detect(&mapped, method).or_else(|_| Shape::detect(&fields, method));
                *self.shape.insert(found.map_err(|problem| bad("", problem))?)
            }
        };
        let example = shape.read(&fields).map_err(|problem| bad(&problem.field, problem.problem))?;
        Ok(example.and_then(|example| example.finished(self.options.drop_system_message)))
    }

    /// Counts a bad row, or returns it as the error that ends the run.
    pub(crate) fn bad(&mut self, row: BadRow) -> Option<TrainError> {
        if self.options.skip_bad {
            self.report.count_bad(row);
            return None;
        }
        self.failed = true;
        Some(TrainError::Row(row))
    }
}

impl Iterator for Examples {
    type Item = Result<(Place, Example)>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed && self.options.limit.is_none_or(|limit| self.report.read < limit) {
            let row = match self.next_row()? {
                Ok(row) => row,
                Err(RowError::Bad(row)) => {
                    self.report.read += 1;
                    match self.bad(row) {
                        Some(error) => return Some(Err(error)),
                        None => continue,
                    }
                }
                Err(RowError::Fatal(error)) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            };
            self.report.read += 1;
            let place = row.place.clone();
            match self.read(row) {
                Ok(Ok(example)) => return Some(Ok((place, example))),
                Ok(Err(reason)) => self.report.count_dropped(reason),
                Err(TrainError::Row(row)) => {
                    // Without a shape no row can be read: the file is at fault, not this row.
                    if self.shape.is_none() {
                        self.failed = true;
                        let remedy = "name the columns with --columns, for example prompt=question,response=answer";
                        return Some(Err(TrainError::data(
                            &row.place.to_string(),
                            "rows of a known shape",
                            row.problem,
                            remedy,
                        )));
                    }
                    if let Some(error) = self.bad(row) {
                        return Some(Err(error));
                    }
                }
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}
