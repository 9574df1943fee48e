//! Lists the files of `checkpoint/` for `include_bytes!`.
//!
//! A generated list, rather than names written in the source: the quantized checkpoint decides
//! which files it has, and a checkout without one still builds (with an empty list).

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), String> {
    let root = PathBuf::from(
        env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set: run this through cargo")?,
    );
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?);
    let checkpoint = root.join("checkpoint");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=checkpoint");
    let mut source = String::from("&[\n");
    for name in listing(&checkpoint)? {
        // Relative to the manifest, so that a build folder outlives the place of the checkout.
        let path = format!("/checkpoint/{name}");
        source += &format!("    ({name:?}, include_bytes!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?}))),\n");
    }
    source += "]\n";
    fs::write(out.join("files.rs"), source).map_err(|e| format!("cannot write the file list: {e}"))
}

/// The plain files in `directory`, by name; nothing when it is missing.
fn listing(directory: &Path) -> Result<Vec<String>, String> {
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    let entries = fs::read_dir(directory).map_err(|e| format!("cannot list {}: {e}", directory.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("cannot list {}: {e}", directory.display()))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
            return Err(format!("{} has a name that is not UTF-8: rename it", path.display()));
        };
        if path.is_file() && !name.starts_with('.') {
            files.push(name.to_owned());
        }
    }
    files.sort();
    Ok(files)
}
