//! Models and data sets by their name on a hub: `org/name[:revision][/file.gguf]`.
//!
//! The cache is Hugging Face's (`HF_HOME`, through the hf-hub crate), so that downloads are shared with Python
//! programs; so are the token and `HF_ENDPOINT`. A model in the cache is opened without network access. Nothing is
//! downloaded without consent: `bayan pull` is a request; `--model org/name` asks first and shows the size. Rejected:
//! hf-hub's own transfers, because names, sizes and checksums from a server must be checked against each other before
//! they become paths or models.

pub mod download;
pub mod listing;
mod name;
pub mod training;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use hf_hub::Cache;

use crate::support::output;

pub use name::{HubName, Kind, repo};

/// Whether the network may not be used.
pub static OFFLINE: AtomicBool = AtomicBool::new(false);

/// Whether the network may not be used.
pub fn set_offline(offline: bool) {
    OFFLINE.store(offline, Ordering::Relaxed);
}

/// The path that `--model` opens for this name; the model is downloaded first if the user agrees.
///
/// # Errors
/// The model is not in the cache and the user is offline or declines; the server refuses, or the transfer fails.
pub fn open(name: &HubName) -> Result<PathBuf> {
    let cache = Cache::from_env();
    if let Some(path) = cached(&cache, name) {
        return Ok(path);
    }
    if OFFLINE.load(Ordering::Relaxed) {
        bail!(
            "{name} is not in the cache {}, and --offline forbids downloads: run `bayan pull {name}` with a network",
            cache.path().display()
        );
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        bail!(
            "{name} is neither a local file or directory nor in the cache {}: download it with `bayan pull {name}`",
            cache.path().display()
        );
    }
    let plan = listing::plan(&cache, name)?;
    let size = output::size(plan.missing_bytes());
    let _ = write!(
        std::io::stderr(),
        "{name} is not on this machine. Download {size} from {} into {}? [y/N] ",
        plan.endpoint,
        cache.path().display()
    );
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim().to_lowercase().as_str(), "y" | "yes" | "نعم") {
        bail!("{name} was not downloaded");
    }
    download::run(&cache, &plan)
}

/// The folder of a data set that was pulled at this revision.
///
/// # Errors
/// It is not in the cache.
pub fn dataset(name: &HubName) -> Result<PathBuf> {
    let cache = Cache::from_env();
    let own = cache.path().join(repo(name).folder_name());
    let commit = match name.is_commit() {
        true => Some(name.revision.clone()),
        false => std::fs::read_to_string(own.join("refs").join(&name.revision)).ok(),
    };
    let commit = commit.map(|commit| commit.trim().to_owned()).filter(|commit| name::is_hex(commit, 40));
    let folder = commit.map(|commit| own.join("snapshots").join(commit)).filter(|folder| folder.is_dir());
    match folder {
        Some(folder) => Ok(folder),
        None => bail!(
            "{name} is neither a local file or folder nor a data set in the cache {}: download it with `bayan pull --dataset \
             {name}`",
            cache.path().display()
        ),
    }
}

/// The directory or file of a name, if all its files are in the cache.
fn cached(cache: &Cache, name: &HubName) -> Option<PathBuf> {
    let handle = cache.repo(repo(name));
    let directory = if name.is_commit() {
        handle.pointer_path(&name.revision)
    } else {
        handle.get("config.json").and_then(|path| path.parent().map(PathBuf::from)).or_else(|| {
            let reference = cache.path().join(repo(name).folder_name()).join("refs").join(&name.revision);
            let commit = std::fs::read_to_string(reference).ok()?;
            name::is_hex(commit.trim(), 40).then(|| handle.pointer_path(commit.trim()))
        })?
    };
    if let Some(file) = &name.file {
        let path = directory.join(file);
        let parts = listing::parts_of(file).into_iter().all(|part| directory.join(part).is_file());
        return (path.is_file() && parts).then_some(path);
    }
    if has_weights(&directory) {
        return Some(directory);
    }
    None
}

/// Whether a snapshot has weights, including every shard of its index.
fn has_weights(directory: &std::path::Path) -> bool {
    for index in ["model.safetensors.index.json", "pytorch_model.bin.index.json"] {
        let Ok(text) = std::fs::read_to_string(directory.join(index)) else { continue };
        let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) else { return false };
        let shards = value
            .get("weight_map")
            .and_then(|map| map.as_object())
            .map(|map| map.values().filter_map(|file| file.as_str()).collect::<Vec<_>>());
        return shards.is_some_and(|files| files.iter().all(|file| directory.join(file).is_file()));
    }
    let listed = std::fs::read_dir(directory)
        .map(|entries| entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(".gguf")));
    directory.join("model.safetensors").is_file()
        || directory.join("pytorch_model.bin").is_file()
        || listed.unwrap_or(false)
}
