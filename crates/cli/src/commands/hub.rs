//! `bayan pull`, `list` and `remove`.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use hf_hub::Cache;
use serde_json::json;

use crate::support::hub::{self, HubName, Kind, download, listing};
use crate::support::output;

/// Flags of `bayan pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The model: `org/name[:revision][/file.gguf]`
    #[arg(value_name = "NAME", value_parser = hub_name, required_unless_present = "dataset")]
    name: Option<HubName>,
    /// A data set instead: `org/name[:revision]`; its files with rows are downloaded
    #[arg(long, value_name = "NAME", value_parser = dataset_name, conflicts_with = "name")]
    dataset: Option<HubName>,
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
    #[arg(value_name = "NAME", value_parser = hub_name, required_unless_present = "dataset")]
    name: Option<HubName>,
    /// A data set instead: org/name
    #[arg(long, value_name = "NAME", value_parser = dataset_name, conflicts_with = "name")]
    dataset: Option<HubName>,
}

fn hub_name(text: &str) -> Result<HubName, String> {
    HubName::parse(text).ok_or_else(|| "expected org/name, org/name:revision or org/name/file.gguf".to_string())
}

fn dataset_name(text: &str) -> Result<HubName, String> {
    HubName::parse_dataset(text).ok_or_else(|| "expected org/name or org/name:revision".to_string())
}

/// Downloads a model or a data set, or the files of it that have changed.
///
/// # Errors
/// The hub refuses the request, or the transfer fails.
pub fn pull(args: &PullArgs) -> Result<ExitCode> {
    if hub::OFFLINE.load(std::sync::atomic::Ordering::Relaxed) {
        bail!("--offline forbids downloads");
    }
    let cache = Cache::from_env();
    let name = args.name.as_ref().or(args.dataset.as_ref()).context("a name")?;
    let plan = listing::plan(&cache, name)?;
    let (all, missing) = (plan.files.len(), output::size(plan.missing_bytes()));
    output::note(&format!(
        "{name}: {all} files, {missing} to download from {} into {}",
        plan.endpoint,
        cache.path().display()
    ));
    let path = download::run(&cache, &plan)?;
    output::line(&path.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// Lists the models and data sets in the cache.
///
/// # Errors
/// The cache cannot be read.
pub fn list(args: &ListArgs) -> Result<ExitCode> {
    let cache = Cache::from_env();
    let mut found: Vec<(Kind, String, u64, usize)> = Vec::new();
    if let Ok(entries) = fs::read_dir(cache.path()) {
        for entry in entries.flatten() {
            let folder = entry.file_name().to_string_lossy().into_owned();
            for kind in [Kind::Model, Kind::Dataset] {
                let Some(name) = folder.strip_prefix(kind.prefix()) else { continue };
                let commits = fs::read_dir(entry.path().join("snapshots")).map_or(0, |all| all.flatten().count());
                found.push((kind, name.replacen("--", "/", 1), size_of(&entry.path().join("blobs")), commits));
            }
        }
    }
    found.sort_by_key(|(kind, name, ..)| (kind.noun() != Kind::Model.noun(), name.clone()));
    if args.json {
        let of = |wanted: Kind| {
            let own = found.iter().filter(|(kind, ..)| *kind == wanted);
            own.map(|(_, name, bytes, commits)| json!({"name": name, "bytes": bytes, "commits": commits}))
                .collect::<Vec<_>>()
        };
        output::json(&json!({"cache": cache.path(), "models": of(Kind::Model), "datasets": of(Kind::Dataset)}))?;
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() {
        output::line(&format!("no models in {}", cache.path().display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (kind, heading) in [(Kind::Model, "model"), (Kind::Dataset, "data set")] {
        let own = found.iter().filter(|(own, ..)| *own == kind);
        let rows: Vec<Vec<String>> = own
            .map(|(_, name, bytes, commits)| vec![name.clone(), output::size(*bytes), commits.to_string()])
            .collect();
        if !rows.is_empty() {
            output::line(&output::table(&[heading, "size", "revisions"], &rows))?;
        }
    }
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

/// Deletes a model or a data set from the cache.
///
/// # Errors
/// The cache has none of this name, or its files cannot be deleted.
pub fn remove(args: &RemoveArgs) -> Result<ExitCode> {
    let name = args.name.as_ref().or(args.dataset.as_ref()).context("a name")?;
    if name.file.is_some() || name.revision != "main" {
        bail!("expected org/name: it is removed as a whole, because its files and revisions share data");
    }
    let cache = Cache::from_env();
    let directory = cache.path().join(hub::repo(name).folder_name());
    if !directory.is_dir() {
        bail!("{name} is not in the cache {}; `bayan list` shows what was downloaded", cache.path().display());
    }
    let size = size_of(&directory.join("blobs"));
    fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    output::line(&format!("{name}: {} freed", output::size(size)))?;
    Ok(ExitCode::SUCCESS)
}
