//! `bayan caches`: what Bayan keeps on disk between runs, and its deletion.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use hf_hub::Cache as HubCache;
use serde_json::json;

use super::{chat, hub};
use crate::support::{output, tuning};

/// A kind of data that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Kernel variants that were measured on this machine's devices
    Tuning,
    /// Lines typed in `bayan chat`
    History,
    /// Downloaded models, shared with other programs; all of them are deleted
    Hub,
}

impl Kind {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The file or directory; `None` where the user has no home directory.
    fn path(self) -> Option<PathBuf> {
        match self {
            Kind::Tuning => tuning::directory(),
            Kind::History => chat::history_file(),
            Kind::Hub => Some(HubCache::from_env().path().clone()),
        }
    }

    /// The paths that clearing deletes: of the hub's cache only models, because other programs keep data sets there.
    fn contents(self) -> Vec<PathBuf> {
        let Some(path) = self.path() else { return Vec::new() };
        if self != Kind::Hub {
            return if path.exists() { vec![path] } else { Vec::new() };
        }
        let is_model = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("models--"))
        };
        fs::read_dir(path).map_or(Vec::new(), |all| all.flatten().map(|entry| entry.path()).filter(is_model).collect())
    }

    fn size_bytes(self) -> u64 {
        self.contents()
            .iter()
            .map(|path| match self {
                Kind::Hub => hub::size_of(&path.join("blobs")),
                _ if path.is_dir() => hub::size_of(path),
                _ => fs::metadata(path).map_or(0, |data| data.len()),
            })
            .sum()
    }
}

/// Flags of `bayan caches`.
#[derive(Debug, Args)]
pub struct CachesArgs {
    /// Delete these, separated by commas
    #[arg(long, value_name = "KINDS", value_delimiter = ',')]
    clear: Vec<Kind>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Shows the caches; deletes those that `--clear` names.
///
/// # Errors
/// Something cannot be deleted.
pub fn run(args: &CachesArgs) -> Result<ExitCode> {
    let freed: Vec<u64> = Kind::value_variants()
        .iter()
        .map(|kind| if args.clear.contains(kind) { clear(*kind) } else { Ok(0) })
        .collect::<Result<_>>()?;
    let place = |kind: Kind| kind.path().map_or("no place".to_owned(), |path| path.display().to_string());
    if args.json {
        let all = Kind::value_variants().iter().zip(&freed).map(|(kind, freed)| {
            json!({"name": kind.name(), "path": kind.path(), "bytes": kind.size_bytes(), "freed_bytes": freed})
        });
        output::json(&json!({ "caches": all.collect::<Vec<_>>() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |(kind, freed): (&Kind, &u64)| {
        let freed = if args.clear.contains(kind) { output::size(*freed) } else { String::new() };
        vec![kind.name(), output::size(kind.size_bytes()), freed, place(*kind)]
    };
    let rows: Vec<Vec<String>> = Kind::value_variants().iter().zip(&freed).map(row).collect();
    output::line(&output::table(&["cache", "size", "freed", "place"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

/// Deletes a cache; returns its bytes.
fn clear(kind: Kind) -> Result<u64> {
    let size = kind.size_bytes();
    kind.contents().iter().try_for_each(|path| delete(path))?;
    Ok(size)
}

fn delete(path: &Path) -> Result<()> {
    let deleted = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    deleted.with_context(|| format!("cannot delete {}", path.display()))
}
