//! `cargo xtask web`: the engine, the page and the embedded model as one static site, served or written to a directory.

use crate::{process, serve, tools, wasm, workspace};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// Arguments of `cargo xtask web`.
#[derive(Args)]
pub struct WebArguments {
    /// Write the static site here instead of serving it; it works from any host, under any path.
    #[arg(long, value_name = "DIR")]
    release_dir: Option<PathBuf>,
    /// The port on localhost.
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

/// Builds the site, then serves or writes it.
pub fn run(arguments: &WebArguments) -> Result<()> {
    if let Some(directory) = &arguments.release_dir {
        check_empty(directory)?;
        let site = build_site()?;
        copy_tree(&site, directory)?;
        println!("The site is in {}. Any static host serves it, under any path.", directory.display());
        return Ok(());
    }
    serve::serve(&build_site()?, arguments.port)
}

/// Builds everything; returns the directory of the whole site.
pub fn build_site() -> Result<PathBuf> {
    if !workspace::has_wasm() {
        bail!("crates/wasm is missing, so there is no browser engine to build; remedy: use a complete checkout");
    }
    let engine = wasm::build()?;
    let page = build_page()?;
    let site = workspace::target_dir()?.join("site");
    if site.exists() {
        fs::remove_dir_all(&site).with_context(|| format!("{} could not be emptied", site.display()))?;
    }
    copy_tree(&page, &site)?;
    copy_tree(&engine, &site.join("engine"))?;
    match embedded_checkpoint() {
        Some(checkpoint) => ship_model(&checkpoint, &site.join("model"))?,
        None => eprintln!("crates/embedded/checkpoint is missing: the site ships without a model"),
    }
    Ok(site)
}

/// Builds the page; returns its directory.
pub fn build_page() -> Result<PathBuf> {
    let node = tools::node()?;
    tools::web_modules(node.as_deref())?;
    process::run(tools::in_web("npm", node.as_deref())?.args(["run", "build"]))?;
    let page = workspace::root().join("web/dist");
    if !page.join("index.html").is_file() {
        bail!(
            "`npm run build` ended well, but {} holds no index.html; remedy: check `build.outDir` in web/vite.config.ts",
            page.display()
        );
    }
    Ok(page)
}

fn check_empty(directory: &Path) -> Result<()> {
    match fs::read_dir(directory) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                bail!(
                    "{}: expected a new or empty directory, found files in it; remedy: remove them or name another one",
                    directory.display()
                );
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{} could not be read", directory.display())),
    }
}

/// The checkpoint of `crates/embedded`, if the checkout has it.
fn embedded_checkpoint() -> Option<PathBuf> {
    let directory = workspace::root().join("crates/embedded/checkpoint");
    directory.join("config.json").is_file().then_some(directory)
}

/// Copies a checkpoint and writes a `manifest.json` with which the page finds and verifies its files.
fn ship_model(checkpoint: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("{} could not be made", out.display()))?;
    let mut files = Vec::new();
    for path in sorted_entries(checkpoint)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| belongs_to_checkpoint(name))
        else {
            continue;
        };
        let bytes = fs::read(&path).with_context(|| format!("{} could not be read", path.display()))?;
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(out.join(name), &bytes)
            .with_context(|| format!("{} could not be written", out.join(name).display()))?;
        files.push(json!({"path": name, "size": bytes.len(), "sha256": digest}));
    }
    let manifest = json!({"name": "بيان الصغير", "files": files});
    fs::write(out.join("manifest.json"), format!("{manifest:#}\n"))
        .with_context(|| format!("{} could not be written", out.join("manifest.json").display()))
}

/// Whether a runtime reads this file; the model card and training logs are not copied.
fn belongs_to_checkpoint(name: &str) -> bool {
    [".safetensors", ".json", ".jinja", ".model"].iter().any(|ending| name.ends_with(ending))
}

fn sorted_entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("{} could not be read", directory.display()))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<PathBuf>>>()
        .with_context(|| format!("{} could not be listed", directory.display()))?;
    paths.sort();
    Ok(paths)
}

/// Copies files and directories below `from` to `to`.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("{} could not be made", to.display()))?;
    for path in sorted_entries(from)? {
        let target = to.join(path.file_name().context("a directory entry has no name")?);
        if path.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            fs::copy(&path, &target)
                .with_context(|| format!("{} could not be copied to {}", path.display(), target.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shipped_model_is_listed_with_sizes_and_digests() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (checkpoint, out) = (directory.path().join("in"), directory.path().join("out"));
        fs::create_dir(&checkpoint).expect("a directory in it");
        fs::write(checkpoint.join("config.json"), "abc").expect("a file");
        fs::write(checkpoint.join("README.md"), "card").expect("a file");
        ship_model(&checkpoint, &out).expect("a copy");
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(out.join("manifest.json")).expect("a manifest")).expect("JSON");
        // The digest of "abc" in the standard.
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(manifest["files"], json!([{"path": "config.json", "size": 3, "sha256": digest}]));
        assert!(out.join("config.json").is_file() && !out.join("README.md").exists());
    }

    #[test]
    fn a_directory_with_files_is_left_alone() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        assert!(check_empty(directory.path()).is_ok());
        assert!(check_empty(&directory.path().join("new")).is_ok());
        fs::write(directory.path().join("mine.txt"), "x").expect("a file");
        assert!(check_empty(directory.path()).is_err());
    }
}
