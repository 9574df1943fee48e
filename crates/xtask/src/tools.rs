//! The programs that tests and builds run; missing ones are installed from their registries.

use crate::{packages, process, workspace};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest Node that the page's build tools support.
const NODE: (u32, u32) = (20, 19);

/// The newest cargo-nextest that compiles with the `rust-version` of the workspace.
const NEXTEST: &str = "0.9.114";

/// The Node that is installed if the system has none or an older one.
const NODE_PACKAGE: &str = "node@22";

/// rustfmt and clippy: part of the usual Rust installation, but not of the minimal one.
pub fn rust_components() -> Result<()> {
    for (component, command) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if process::succeeds(workspace::cargo().args([command, "--version"])) {
            continue;
        }
        eprintln!("Installing {component}: `cargo {command}` is missing");
        if process::find_program("rustup").is_none() {
            bail!(
                "`cargo {command}` is missing, and there is no rustup to add it with; remedy: install {component} of the Rust version in use"
            );
        }
        process::run(Command::new("rustup").args(["component", "add", component]))?;
    }
    Ok(())
}

/// cargo-nextest, compiled from crates.io if missing: without optimization and without its updater, because it spends
/// its time waiting for tests.
pub fn nextest() -> Result<()> {
    if process::succeeds(workspace::cargo().args(["nextest", "--version"])) {
        return Ok(());
    }
    eprintln!("Installing cargo-nextest: it runs the tests, each in its own process (compiling it takes some minutes)");
    let quick = ["--debug", "--no-default-features", "--features", "default-no-update"];
    process::run(workspace::cargo().args(["install", "--locked", "cargo-nextest", "--version", NEXTEST]).args(quick))
        .context("cargo-nextest could not be installed; remedy: install it by hand, from your system's packages or as its site says")
}

/// A C compiler, because some crates of tests and tools compile C.
pub fn c_compiler() -> Result<()> {
    if ["cc", "gcc", "clang"].iter().any(|name| process::find_program(name).is_some()) || !cfg!(target_os = "linux") {
        return Ok(());
    }
    packages::install(&["gcc", "libc6-dev"], "a C compiler and linker are missing")
}

/// Node and npm, recent enough for the page's build. Returns the directory to put first on the PATH, if any.
pub fn node() -> Result<Option<PathBuf>> {
    let own = workspace::target_dir()?.join("xtask-tools/node_modules/.bin");
    if node_version("node").is_some_and(|version| version >= NODE) && process::find_program("npm").is_some() {
        return Ok(None);
    }
    if node_version(own.join("node")).is_some_and(|version| version >= NODE) {
        return Ok(Some(own));
    }
    if process::find_program("npm").is_none() {
        packages::install(&["nodejs", "npm"], "Node builds the page and runs its tests")?;
    }
    if node_version("node").is_some_and(|version| version >= NODE) {
        return Ok(None);
    }
    eprintln!(
        "Installing {NODE_PACKAGE} into {}: the page's build needs Node {}.{} or newer, and the system has an older one",
        own.display(),
        NODE.0,
        NODE.1
    );
    let directory = workspace::target_dir()?.join("xtask-tools");
    std::fs::create_dir_all(&directory).with_context(|| format!("{} could not be made", directory.display()))?;
    process::run(
        Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--prefix"])
            .arg(&directory)
            .args(["--allow-scripts=node", NODE_PACKAGE]),
    )?;
    match node_version(own.join("node")) {
        Some(version) if version >= NODE => Ok(Some(own)),
        _ => bail!(
            "expected Node {}.{} or newer, and the npm package {NODE_PACKAGE} brought none that runs; remedy: install it by hand",
            NODE.0,
            NODE.1
        ),
    }
}

/// Parses `v20.19.1` as (20, 19).
fn node_version(program: impl AsRef<Path>) -> Option<(u32, u32)> {
    let text = process::capture(Command::new(program.as_ref()).arg("--version")).ok()?;
    parse_version(text.trim().trim_start_matches('v'))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// A Chromium for the browser tests: the one in `BAYAN_CHROMIUM`, an installed one, or Debian's.
pub fn chromium() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BAYAN_CHROMIUM").map(PathBuf::from) {
        if path.is_file() {
            return Ok(path);
        }
        bail!("BAYAN_CHROMIUM names {}, which is not a file; remedy: unset it, or name a Chromium", path.display());
    }
    let find = || {
        ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
            .iter()
            .find_map(|name| process::find_program(name))
    };
    if let Some(path) = find() {
        return Ok(path);
    }
    packages::install(&["chromium"], "the browser tests run in it")?;
    find().context("Chromium was installed, but is not on the PATH; remedy: set BAYAN_CHROMIUM to its path")
}

/// A command to run in `web/`, with the right Node first on the PATH.
pub fn in_web(program: &str, node_bin: Option<&Path>) -> Result<Command> {
    let mut command = Command::new(program);
    command.current_dir(workspace::root().join("web"));
    if let Some(directory) = node_bin {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let joined = std::env::join_paths(std::iter::once(directory.to_path_buf()).chain(std::env::split_paths(&path)));
        command.env("PATH", joined.context("the PATH holds a directory that cannot be listed in it")?);
    }
    Ok(command)
}

/// Runs `npm ci` in `web/`, unless the installed modules match the lock file.
pub fn web_modules(node_bin: Option<&Path>) -> Result<()> {
    let web = workspace::root().join("web");
    let modified = |path: PathBuf| std::fs::metadata(path).and_then(|data| data.modified()).ok();
    let locked = modified(web.join("package-lock.json"));
    let installed = modified(web.join("node_modules/.package-lock.json"));
    if installed.is_some() && installed >= locked {
        return Ok(());
    }
    process::run(in_web("npm", node_bin)?.args(["ci", "--no-audit", "--no-fund"]))
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(parse_version("20.9.0"), Some((20, 9)));
        assert!(parse_version("20.9.0") < parse_version("20.19.0"));
        assert_eq!(parse_version("nonsense"), None);
    }
}
