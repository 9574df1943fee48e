//! The rows of benchmarks, in the user's folder, in the layouts in which they are published.
//!
//! A data set `org/name` is looked for in `DIR/org/name`, `DIR/name`, a hub's cache folder and `DIR` itself. Inside it,
//! the files of a configuration and a split have one of the layouts of [`LAYOUTS`], in parts or whole. Rejected: the
//! hub's list of files (`README.md` of the data set), because copies that people keep rarely have it.

mod fields;
pub mod python;
mod python_random;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bayan_train::data::{Row, RowError, open_rows_with};
use sha2::{Digest, Sha256};

use crate::{EvalError, Result};
pub use fields::{Fields, Problem, Read};
pub use python_random::{NumpyRandom, PythonRandom};

/// Where the files of a configuration and a split are, without the file's ending.
pub const LAYOUTS: &[&str] = &[
    "{config}/{split}",
    "data/{config}/{split}",
    "{split}/{config}_{split}",
    "{split}/{config}",
    "{config}_{split}",
    "{config}-{split}",
    "data/{config}_{split}",
    "data/{split}/{config}",
    "data/{split}/{config}_{split}",
    "{config}/{config}_{split}",
    "{config}",
    "data/{config}",
];

/// Where the files of a split are when the data set has one configuration.
pub const PLAIN_LAYOUTS: &[&str] = &["{split}", "data/{split}", "default/{split}", "data", "data/data"];

const ENDINGS: &[&str] = &["parquet", "jsonl", "ndjson", "json", "csv", "tsv"];

/// More files than any benchmark has: a wrong folder is noticed before it is read.
const MOST_FILES: usize = 20_000;

/// Where a task's rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The data set's name on its hub, or its folder's name.
    pub dataset: &'static str,
    /// Its configuration; `None` if it has one only.
    pub config: Option<String>,
    /// The split with the questions.
    pub split: &'static str,
    /// The split with the examples before a question.
    pub shots_split: Option<&'static str>,
    /// The path of a split, if it is none of [`LAYOUTS`].
    pub file: Option<&'static str>,
    /// The columns of files without a header line.
    pub columns: Option<&'static [&'static str]>,
    /// The rows that belong to the task; `None`: all.
    pub part: Option<Part>,
}

/// The part of a file's rows that belongs to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Rows whose `id` begins with this and a hyphen.
    Topic(String),
    /// Rows with this `direction` of translation.
    Direction(String),
}

impl Part {
    /// Whether a row belongs to it.
    ///
    /// # Errors
    /// The row does not have the column that decides.
    pub fn has(&self, fields: &Fields<'_>) -> Read<bool> {
        match self {
            Part::Topic(topic) => Ok(fields.text("id")?.split('-').next() == Some(topic)),
            Part::Direction(direction) => Ok(fields.text("direction")? == *direction),
        }
    }
}

/// The rows of one split.
#[derive(Debug, Clone)]
pub struct Rows {
    /// All rows, in the order of the files.
    pub rows: Rc<Vec<Row>>,
    /// SHA-256 of each file, by its path below the data folder.
    pub hashes: Rc<BTreeMap<String, String>>,
}

/// A user's data folder.
#[derive(Debug)]
pub struct DataFolder {
    root: PathBuf,
    /// The data set that the folder itself is.
    dataset: Option<String>,
    /// The split that was read last: topics of one file follow each other.
    last: Option<(Vec<PathBuf>, Rows)>,
}

impl DataFolder {
    /// A folder that exists.
    ///
    /// # Errors
    /// It does not exist.
    pub fn open(root: &Path) -> Result<DataFolder> {
        let about = fs::metadata(root).map_err(|error| EvalError::io("open", root, error))?;
        if !about.is_dir() {
            let what = format!("--data {}", root.display());
            return Err(EvalError::unexpected(what, "a folder", "a file", "name the folder with the data sets"));
        }
        Ok(DataFolder { root: root.to_owned(), dataset: None, last: None })
    }

    /// The folder of one data set, whatever its name.
    ///
    /// # Errors
    /// It does not exist.
    pub fn of_dataset(root: &Path, dataset: &str) -> Result<DataFolder> {
        Ok(DataFolder { dataset: Some(dataset.to_owned()), ..DataFolder::open(root)? })
    }

    /// Reads a split of a source.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read to its end.
    pub fn read(&mut self, source: &Source, split: &str) -> Result<Rows> {
        let files = self.find(source, split)?;
        self.load(files, source.columns)
    }

    /// Reads a data set of one file that has one of these names (without ending), in the data set's folder or in the
    /// data folder itself; or whatever its name, if it is the only data file of the data set's folder.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read to its end.
    pub fn read_named(&mut self, dataset: &str, names: &[&str]) -> Result<Rows> {
        let own = self.folders(dataset);
        let root = self.root.clone();
        for folder in own.iter().chain([&root]).filter(|folder| folder.is_dir()) {
            for name in names {
                let files = parts(folder, name)?;
                if !files.is_empty() {
                    return self.load(files, None);
                }
            }
        }
        for folder in own.iter().flat_map(|folder| [folder.clone(), folder.join("data")]) {
            let entries = fs::read_dir(&folder).into_iter().flatten().take(MOST_FILES).flatten();
            let files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_data_file(path)).collect();
            if files.len() == 1 {
                return self.load(files, None);
            }
        }
        let looked: Vec<String> = own.iter().map(|folder| folder.display().to_string()).collect();
        Err(EvalError::unexpected(
            format!("data of {dataset}"),
            format!("a file {} in {}", names.join(" or "), looked.join(", ")),
            "none",
            "put the data set there, as it is published",
        ))
    }

    fn load(&mut self, files: Vec<PathBuf>, columns: Option<&[&str]>) -> Result<Rows> {
        if let Some((_, rows)) = self.last.as_ref().filter(|(last, _)| *last == files) {
            return Ok(rows.clone());
        }
        let (mut rows, mut hashes) = (Vec::new(), BTreeMap::new());
        for file in &files {
            for row in open_rows_with(file, columns)? {
                rows.push(row.map_err(|error| match error {
                    RowError::Bad(row) => EvalError::Row(row),
                    RowError::Fatal(error) => error.into(),
                })?);
            }
            let name = file.strip_prefix(&self.root).unwrap_or(file).display().to_string();
            hashes.insert(name, hash_file(file)?);
        }
        let found = Rows { rows: Rc::new(rows), hashes: Rc::new(hashes) };
        self.last = Some((files, found.clone()));
        Ok(found)
    }

    /// Folders that may hold the data set.
    fn folders(&self, dataset: &str) -> Vec<PathBuf> {
        if self.dataset.as_deref() == Some(dataset) {
            return vec![self.root.clone()];
        }
        let name = dataset.rsplit('/').next().unwrap_or(dataset);
        let mut found = vec![self.root.join(dataset), self.root.join(name)];
        let cache = self.root.join(format!("datasets--{}", dataset.replace('/', "--")));
        let snapshots = cache.join("snapshots");
        // Of several revisions, the one that was downloaded as the main one.
        if let Ok(commit) = fs::read_to_string(cache.join("refs/main")) {
            let commit = commit.trim();
            if commit.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !commit.is_empty() {
                found.push(snapshots.join(commit));
            }
        }
        let mut cached: Vec<PathBuf> =
            fs::read_dir(snapshots).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        cached.sort();
        found.extend(cached);
        found.push(self.root.join("eval/benchmark_eval/benchmarks").join(name));
        if self.root.file_name().is_some_and(|own| own == name) {
            found.push(self.root.clone());
        }
        found
    }

    fn find(&self, source: &Source, split: &str) -> Result<Vec<PathBuf>> {
        let layouts: Vec<String> = match (source.file, &source.config) {
            (Some(file), _) => vec![file.replace("{split}", split)],
            (None, Some(config)) => {
                LAYOUTS.iter().map(|layout| layout.replace("{config}", config).replace("{split}", split)).collect()
            }
            (None, None) => PLAIN_LAYOUTS.iter().map(|layout| layout.replace("{split}", split)).collect(),
        };
        // `{config}` alone has no split in its name: it is the split with the questions.
        let layouts = layouts.iter().filter(|layout| split == source.split || layout.contains(split));
        let folders = self.folders(source.dataset);
        for layout in layouts.clone() {
            for folder in folders.iter().filter(|folder| folder.is_dir()) {
                let files = parts(folder, layout)?;
                if !files.is_empty() {
                    return Ok(files);
                }
            }
        }
        let config = source.config.as_deref().map(|config| format!(" of `{config}`")).unwrap_or_default();
        let there = folders.iter().find(|folder| folder.is_dir());
        let got = match there {
            Some(folder) => format!("none of these in {}", folder.display()),
            None => format!("no folder {} in {}", source.dataset, self.root.display()),
        };
        let expected: Vec<&str> = layouts.map(String::as_str).take(5).collect();
        Err(EvalError::unexpected(
            format!("{}, split `{split}`{config}", source.dataset),
            format!("a file {}, … that ends in .{}", expected.join(", "), ENDINGS.join(", .")),
            got,
            "put the data set there as it is published, or name another folder with --data",
        ))
    }
}

/// The files of a layout: one file, or numbered parts of it.
fn parts(folder: &Path, layout: &str) -> Result<Vec<PathBuf>> {
    let whole = folder.join(layout);
    let Some(parent) = whole.parent() else { return Ok(Vec::new()) };
    let Some(stem) = whole.file_name().and_then(|name| name.to_str()) else { return Ok(Vec::new()) };
    for (directory, stem) in [(parent, Some(stem)), (whole.as_path(), None)] {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).into_iter().flatten().take(MOST_FILES) {
            let path = entry.map_err(|error| EvalError::io("list", directory, error))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let plain = name.strip_suffix(".gz").unwrap_or(name);
            let Some((own, ending)) = plain.rsplit_once('.') else { continue };
            let is_part = match stem {
                Some(stem) => own.strip_prefix(stem).is_some_and(|rest| rest.is_empty() || is_part_number(rest)),
                // The hub's converted files: `split/0000.parquet`.
                None => own.len() == 4 && own.bytes().all(|byte| byte.is_ascii_digit()),
            };
            if is_part && ENDINGS.contains(&ending) && path.is_file() {
                found.push(path);
            }
        }
        found.sort();
        if !found.is_empty() {
            // The same rows in two formats must not be counted twice.
            let ending = found[0].extension().map(std::ffi::OsStr::to_owned);
            found.retain(|path| path.extension().map(std::ffi::OsStr::to_owned) == ending);
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// Whether this is a file whose name ends as data files do.
pub fn is_data_file(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    plain.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending)) && path.is_file()
}

/// Whether this is `-00000-of-00002`.
fn is_part_number(rest: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    rest.strip_prefix('-').and_then(|rest| rest.split_once("-of-")).is_some_and(|(a, b)| digits(a) && digits(b))
}

/// SHA-256 of a file, in hexadecimal digits.
///
/// # Errors
/// The file cannot be read.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).map_err(|error| EvalError::io("open", path, error))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(|error| EvalError::io("read", path, error))? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// SHA-256 of a text, in hexadecimal digits.
pub fn hash_text(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(dataset: &'static str, config: Option<&str>) -> Source {
        let config = config.map(str::to_owned);
        Source { dataset, config, split: "test", shots_split: None, file: None, columns: None, part: None }
    }

    fn found(root: &Path, files: &[&str], source: &Source, split: &str) -> Result<Vec<String>> {
        for file in files {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), "{\"a\": 1}\n").unwrap();
        }
        let folder = DataFolder::open(root)?;
        let files = folder.find(source, split)?;
        Ok(files.iter().map(|file| file.strip_prefix(root).unwrap().display().to_string()).collect())
    }

    #[test]
    fn published_layouts_are_found() {
        let of = |files: &[&str], source: &Source, split: &str| {
            let root = tempfile::tempdir().unwrap();
            found(root.path(), files, source, split)
        };
        let subject = source("org/set", Some("a b"));
        let whole = ["set/a b/test.jsonl", "set/a b/dev.jsonl"];
        assert_eq!(of(&whole, &subject, "test").unwrap(), ["set/a b/test.jsonl"]);
        assert_eq!(of(&whole, &subject, "dev").unwrap(), ["set/a b/dev.jsonl"]);
        let two = ["org/set/a b/test-00000-of-00002.parquet", "org/set/a b/test-00001-of-00002.parquet"];
        assert_eq!(of(&two, &subject, "test").unwrap(), two);
        let hub = ["datasets--org--set/snapshots/abc/test/a b_test.csv"];
        assert_eq!(of(&hub, &subject, "test").unwrap(), hub);
        let main =
            ["datasets--org--set/snapshots/a/test/a b_test.csv", "datasets--org--set/snapshots/b/test/a b_test.csv"];
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("datasets--org--set/refs")).unwrap();
        fs::write(root.path().join("datasets--org--set/refs/main"), "b").unwrap();
        assert_eq!(found(root.path(), &main, &subject, "test").unwrap(), [main[1]]);
        assert_eq!(of(&["set/data/test.json"], &source("org/set", None), "test").unwrap(), ["set/data/test.json"]);
        assert_eq!(of(&["set/a b/test/0000.parquet"], &subject, "test").unwrap(), ["set/a b/test/0000.parquet"]);
    }

    #[test]
    fn a_wrong_split_names_what_was_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let subject = source("org/set", Some("a"));
        let error = found(root.path(), &["set/a/dev.jsonl"], &subject, "test").unwrap_err().to_string();
        assert!(error.contains("split `test` of `a`") && error.contains("a/test"), "{error}");
        // A file without a split in its name is no examples.
        let error = found(root.path(), &["set/a.jsonl"], &subject, "train").unwrap_err().to_string();
        assert!(error.contains("split `train`"), "{error}");
    }

    #[test]
    fn hashes_are_sha_256() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_text("abc"), expected);
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("x"), "abc").unwrap();
        assert_eq!(hash_file(&root.path().join("x")).unwrap(), expected);
    }
}
