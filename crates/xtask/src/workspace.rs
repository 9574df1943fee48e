//! Locations: the repository, its target directory, and the existing parts of the project.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root, known at compile time because this program is compiled inside it.
pub fn root() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path.pop();
    path
}

/// The cargo that runs this program, or the first one on the PATH.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The directory that cargo builds into.
pub fn target_dir() -> Result<PathBuf> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cargo metadata could not be run")?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let directory = metadata["target_directory"].as_str().context("cargo metadata names no target_directory")?;
    Ok(PathBuf::from(directory))
}

/// Whether the browser engine exists.
pub fn has_wasm() -> bool {
    root().join("crates/wasm/Cargo.toml").is_file()
}

/// Whether the page exists.
pub fn has_web() -> bool {
    root().join("web/package.json").is_file()
}

/// The browser tests: JavaScript modules named `*.test.*`.
pub fn browser_tests() -> Vec<PathBuf> {
    let directories = ["tests/browser", "crates/wasm/tests/browser"];
    let entries =
        directories.iter().filter_map(|directory| std::fs::read_dir(root().join(directory)).ok()).flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_script(path)).collect();
    found.sort();
    found
}

fn is_script(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    [".test.mjs", ".test.js", ".test.ts"].iter().any(|ending| name.ends_with(ending))
}
