//! Training data by the name of a data set that was pulled: which folder of it, or which file.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use bayan_train::data::DataFiles;

use super::{HubName, dataset};

/// How the names of data files end.
const ENDINGS: [&str; 7] = [".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".gz", ".parquet"];

/// More entries than any data set has at its top: an error lists a part of them.
const MOST_SHOWN: usize = 8;

/// The path of training data: as it is, or if there is no such path and it is the name of a data set
/// (`org/name[:revision]`), the folder or file of that data set with rows to train on.
///
/// # Errors
/// The data set was not pulled, has no training data, or has several configurations with some.
pub fn path(text: &str) -> Result<PathBuf> {
    let path = PathBuf::from(text);
    // A missing `folder/train.jsonl` is a missing file, though a data set could have that name.
    let is_name = !path.exists() && !ENDINGS.iter().any(|ending| text.to_lowercase().ends_with(ending));
    match HubName::parse_dataset(text).filter(|_| is_name) {
        Some(name) => within(&dataset(&name)?, &name),
        None => Ok(path),
    }
}

/// The folder with training files: the data set's own, `data`, `default`, or that of its only configuration.
fn within(folder: &Path, name: &HubName) -> Result<PathBuf> {
    let usual = [folder.to_owned(), folder.join("data"), folder.join("default")];
    if let Some(found) = usual.iter().find(|folder| has_training(folder)) {
        return Ok(found.clone());
    }
    let (files, folders) = entries(folder);
    let below = folders.iter().flat_map(|own| [own.clone(), own.join("data")]).chain(entries(&usual[1]).1);
    let mut found: Vec<PathBuf> = below.filter(|folder| has_training(folder)).collect();
    found.sort();
    found.dedup();
    match (&found[..], &files[..]) {
        ([one], _) => Ok(one.clone()),
        // A data set of one file may call it anything but a split that is kept for tests.
        ([], [file]) if folders.is_empty() && !is_kept(file) => Ok(file.clone()),
        ([], _) => {
            let there = files.iter().chain(&folders).filter_map(|path| path.file_name()?.to_str());
            let there: Vec<&str> = there.take(MOST_SHOWN).collect();
            bail!(
                "--data {name}: expected a data set with training data (files whose names begin with `train`), got {}; \
                 benchmarks are for --eval and `bayan eval run`; to train on a file all the same, name it: --data {}",
                if there.is_empty() { "no data files".to_owned() } else { there.join(", ") },
                folder.join("FILE").display()
            )
        }
        (several, _) => {
            let shown: Vec<String> = several.iter().take(MOST_SHOWN).map(|path| path.display().to_string()).collect();
            bail!(
                "--data {name}: expected one configuration with training data, got {}; name the folder of one: {}",
                several.len(),
                shown.join(", ")
            )
        }
    }
}

fn has_training(folder: &Path) -> bool {
    folder.is_dir() && DataFiles::find(folder).is_ok()
}

/// Whether a file's name says that its rows are not for training.
fn is_kept(file: &Path) -> bool {
    let name = file.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    ["test", "dev", "valid", "eval"].iter().any(|split| name.starts_with(split))
}

/// Data files and folders, sorted.
fn entries(folder: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let paths = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let shown = |path: &PathBuf| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.'));
    let (mut folders, mut files): (Vec<PathBuf>, Vec<PathBuf>) = paths.filter(shown).partition(|path| path.is_dir());
    files.retain(|path| bayan_evaluate::data::is_data_file(path));
    files.sort();
    folders.sort();
    (files, folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in a data set with these files, below its folder.
    fn found(files: &[&str]) -> Result<String, String> {
        let root = tempfile::tempdir().expect("a folder");
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, "{}").expect("a file");
        }
        let name = HubName::parse_dataset("org/set").expect("a name");
        let path = within(root.path(), &name).map_err(|error| error.to_string())?;
        Ok(path.strip_prefix(root.path()).expect("a path below").display().to_string())
    }

    #[test]
    fn published_layouts_have_training_data() {
        assert_eq!(found(&["train.jsonl", "test.jsonl"]).unwrap(), "");
        assert_eq!(found(&["data/train-00000-of-00001.parquet", "README.md"]).unwrap(), "data");
        assert_eq!(found(&["default/train.csv"]).unwrap(), "default");
        assert_eq!(found(&["ar/train.jsonl", "ar/test.jsonl"]).unwrap(), "ar");
        assert_eq!(found(&["data/ar/train.jsonl"]).unwrap(), "data/ar");
        assert_eq!(found(&["alpaca_ar.json", ".gitattributes"]).unwrap(), "alpaca_ar.json");
    }

    #[test]
    fn missing_files_are_not_taken_for_names() {
        assert_eq!(path("data/train.jsonl").unwrap(), PathBuf::from("data/train.jsonl"));
        assert_eq!(path("train").unwrap(), PathBuf::from("train"));
    }

    #[test]
    fn data_sets_without_training_data_are_refused() {
        let error = found(&["test.csv", "dev.csv"]).unwrap_err();
        assert!(error.contains("got dev.csv, test.csv") && error.contains("--eval"), "{error}");
        assert!(found(&["Algeria/test.csv", "Egypt/test.csv"]).unwrap_err().contains("got Algeria, Egypt"));
        assert!(found(&["test.csv"]).unwrap_err().contains("begin with `train`"));
        assert!(found(&["README.md"]).unwrap_err().contains("no data files"));
        let error = found(&["a/train.csv", "b/train.csv"]).unwrap_err();
        assert!(error.contains("one configuration") && error.contains("got 2") && error.contains("/a, "), "{error}");
    }
}
