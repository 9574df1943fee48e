//! `bayan pull`, `list` and `remove`.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use hf_hub::Cache;
use serde_json::json;

use crate::support::hub::{self, HubName, download, listing};
use crate::support::output;

/// Flags of `bayan pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The model: `org/name[:revision][/file.gguf]`
    #[arg(value_name = "NAME", value_parser = hub_name)]
    name: HubName,
}

/// Flags of `bayan list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `bayan remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The model: org/name; all its revisions and files are deleted
    #[arg(value_name = "NAME", value_parser = hub_name)]
    name: HubName,
}

fn hub_name(text: &str) -> Result<HubName, String> {
    HubName::parse(text).ok_or_else(|| "expected org/name, org/name:revision or org/name/file.gguf".to_string())
}

/// Downloads a model, or the files of it that have changed.
///
/// # Errors
/// The hub refuses the request, or the transfer fails.
pub fn pull(args: &PullArgs) -> Result<ExitCode> {
    if hub::OFFLINE.load(std::sync::atomic::Ordering::Relaxed) {
        bail!("--offline forbids downloads");
    }
    let cache = Cache::from_env();
    let plan = listing::plan(&cache, &args.name)?;
    let (all, missing) = (plan.files.len(), output::size(plan.missing_bytes()));
    output::note(&format!(
        "{}: {all} files, {missing} to download from {} into {}",
        args.name,
        plan.endpoint,
        cache.path().display()
    ));
    let path = download::run(&cache, &plan)?;
    output::line(&path.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// Lists the models in the cache.
///
/// # Errors
/// The cache cannot be read.
pub fn list(args: &ListArgs) -> Result<ExitCode> {
    let cache = Cache::from_env();
    let mut models = Vec::new();
    if let Ok(entries) = fs::read_dir(cache.path()) {
        for entry in entries.flatten() {
            let folder = entry.file_name().to_string_lossy().into_owned();
            let Some(name) = folder.strip_prefix("models--").map(|rest| rest.replacen("--", "/", 1)) else { continue };
            let commits = fs::read_dir(entry.path().join("snapshots")).map_or(0, |all| all.flatten().count());
            models.push((name, size_of(&entry.path().join("blobs")), commits));
        }
    }
    models.sort();
    if args.json {
        let model =
            |(name, bytes, commits): &(String, u64, usize)| json!({"name": name, "bytes": bytes, "commits": commits});
        output::json(&json!({"cache": cache.path(), "models": models.iter().map(model).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    if models.is_empty() {
        output::line(&format!("no models in {}", cache.path().display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = models
        .iter()
        .map(|(name, bytes, commits)| vec![name.clone(), output::size(*bytes), commits.to_string()])
        .collect();
    output::line(&output::table(&["model", "size", "revisions"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

/// Bytes of the files in a directory.
pub fn size_of(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(|data| data.is_file())
        .map(|data| data.len())
        .sum()
}

/// Deletes a model from the cache.
///
/// # Errors
/// The cache has no model of this name, or its files cannot be deleted.
pub fn remove(args: &RemoveArgs) -> Result<ExitCode> {
    if args.name.file.is_some() || args.name.revision != "main" {
        bail!("expected org/name: a model is removed as a whole, because its files and revisions share data");
    }
    let cache = Cache::from_env();
    let directory = cache.path().join(hub::repo(&args.name).folder_name());
    if !directory.is_dir() {
        bail!("{} is not in the cache {}; `bayan list` shows the downloaded models", args.name, cache.path().display());
    }
    let size = size_of(&directory.join("blobs"));
    fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    output::line(&format!("{}: {} freed", args.name, output::size(size)))?;
    Ok(ExitCode::SUCCESS)
}
