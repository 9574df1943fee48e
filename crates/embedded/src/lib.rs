//! The demonstration model that is part of the program.
//!
//! `bayan` and the web page can answer before anything is downloaded: the binary contains the files of a quantized
//! checkpoint of a tiny Arabic chat model (this crate's README.md says what it can and cannot do). Rejected: fetching
//! it on first use, because the first minute would then depend on a network.
//!
//! The files are those of `checkpoint/` at build time, as written by `bayan quantize`. A checkout without that folder
//! builds too, with no files.

/// The checkpoint's files, `(name, bytes)`, sorted by name.
///
/// Names are relative to the checkpoint's folder (`"config.json"`, `"tokenizer.json"`, …), as a
/// checkpoint reader asks for them. Empty when the crate was built without a `checkpoint/` folder.
#[must_use]
pub fn files() -> &'static [(&'static str, &'static [u8])] {
    include!(concat!(env!("OUT_DIR"), "/files.rs"))
}

/// The bytes of the file called `name`, if the checkpoint has one.
#[must_use]
pub fn file(name: &str) -> Option<&'static [u8]> {
    files().iter().find(|(n, _)| *n == name).map(|(_, bytes)| *bytes)
}

#[cfg(test)]
mod tests {
    use super::{file, files};
    use std::{fs, path::Path};

    #[test]
    fn the_list_is_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoint");
        let mut names: Vec<String> = fs::read_dir(&folder)
            .map(|entries| {
                entries
                    .flatten()
                    .filter(|e| e.path().is_file())
                    .filter_map(|e| e.file_name().into_string().ok())
                    .filter(|n| !n.starts_with('.'))
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        assert_eq!(files().iter().map(|(n, _)| (*n).to_owned()).collect::<Vec<_>>(), names);
        for (name, bytes) in files() {
            assert_eq!(fs::read(folder.join(name)).ok().as_deref(), Some(*bytes), "{name}");
        }
    }

    #[test]
    fn a_checkpoint_is_whole_and_small() {
        if files().is_empty() {
            assert!(file("config.json").is_none());
            return;
        }
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            assert!(
                file(name).is_some_and(|bytes| !bytes.is_empty()),
                "{name} is missing from the embedded checkpoint"
            );
        }
        let total: usize = files().iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total <= 8 << 20, "the embedded checkpoint has {total} bytes, more than 8 MiB");
    }
}
