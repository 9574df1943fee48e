//! The directory of a run: its start, what is kept in it, resuming from it, and the result.

use std::path::{Path, PathBuf};

use bayan_models::{ADAPTER_CONFIG, ADAPTER_MODEL, Adapter};
use bayan_weights::Checkpoint;

use super::RunStore;
use super::base::check_recipe;
use crate::checkpoint::{Checkpoints, NamedArray, Resumed, TrainState, TrainedWeights};
use crate::error::{Result, TrainError};
use crate::files::{replace_directory, replace_file};
use crate::log::{LOG_FILE, LogEntry, RunLog};
use crate::recipe::{Recipe, SaveDtype};
use crate::scratch::INITIAL;

/// File of the run's directory with its recipe.
pub const RECIPE_FILE: &str = "recipe.toml";

/// A run's directory: checkpoints, the JSONL log, TensorBoard events, and at the end a plot of the loss.
#[derive(Debug)]
pub struct DirectoryStore {
    directory: PathBuf,
    title: String,
    checkpoints: Checkpoints,
    log: Option<RunLog>,
}

impl DirectoryStore {
    /// Keeps the newest `keep_last` checkpoints and the best one in `directory`; `title` is the heading of the plot.
    pub fn new(directory: &Path, keep_last: usize, title: impl Into<String>) -> Self {
        let checkpoints = Checkpoints::new(directory, keep_last);
        Self { directory: directory.to_owned(), title: title.into(), checkpoints, log: None }
    }
}

impl RunStore for DirectoryStore {
    fn open(&mut self, next_step: u64) -> Result<()> {
        self.log = Some(RunLog::open(&self.directory, next_step)?);
        Ok(())
    }

    fn add(&mut self, entry: &LogEntry) -> Result<()> {
        self.log.as_mut().map_or(Ok(()), |log| log.add(entry))
    }

    fn save(&mut self, state: &TrainState, weights: &TrainedWeights, optimizer: &[NamedArray]) -> Result<String> {
        Ok(self.checkpoints.save(state, weights, optimizer)?.display().to_string())
    }

    fn weights(&self, step: u64) -> Result<TrainedWeights> {
        Ok(self.checkpoints.read(step)?.weights)
    }

    fn newest(&self) -> Option<String> {
        let steps = self.checkpoints.steps().unwrap_or_default();
        steps.last().map(|step| self.directory.join(format!("checkpoint-{step}")).display().to_string())
    }

    fn close(&mut self) -> Result<()> {
        self.log.as_ref().map_or(Ok(()), |log| log.plot(&self.title))
    }
}

/// Prepares the directory of a new run and writes the recipe into it. With `overwrite` the files of an earlier run are
/// removed.
///
/// # Errors
/// The directory contains an earlier run and `overwrite` is not set, or a file operation was refused.
pub fn prepare_output(output: &Path, recipe: &Recipe, overwrite: bool) -> Result<()> {
    let ours = |name: &str| {
        [
            ADAPTER_CONFIG,
            ADAPTER_MODEL,
            RECIPE_FILE,
            LOG_FILE,
            "loss.png",
            "loss.html",
            "best.json",
            "tensorboard",
            "model",
            INITIAL,
        ]
        .contains(&name)
            || name.strip_prefix("checkpoint-").is_some_and(|step| step.parse::<u64>().is_ok())
    };
    std::fs::create_dir_all(output).map_err(|source| TrainError::io("create", output, source))?;
    let entries = std::fs::read_dir(output).map_err(|source| TrainError::io("list", output, source))?;
    let mut old = vec![];
    for entry in entries {
        let entry = entry.map_err(|source| TrainError::io("list", output, source))?;
        if ours(&entry.file_name().to_string_lossy()) {
            old.push(entry.path());
        }
    }
    if let (Some(first), false) = (old.first(), overwrite) {
        let got = format!("{} of an earlier run", first.file_name().unwrap_or_default().to_string_lossy());
        let remedy = "name another --output, resume the run with --resume, or replace it with --overwrite";
        return Err(TrainError::checkpoint(output, "a directory without a run", got, remedy));
    }
    for path in old {
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(|source| TrainError::io("remove", &path, source))?;
    }
    replace_file(&output.join(RECIPE_FILE), recipe.to_toml().as_bytes())
}

/// The newest checkpoint of a run, checked against this recipe: only fields that affect logs, checkpoints and
/// evaluations may differ.
///
/// # Errors
/// The checkpoint is damaged, or belongs to another recipe; the error names the first field that differs.
pub fn resumable(output: &Path, recipe: &Recipe) -> Result<Option<Resumed>> {
    let Some(resumed) = Checkpoints::new(output, recipe.keep_last).resume()? else { return Ok(None) };
    check_recipe(&resumed, recipe)?;
    Ok(Some(resumed))
}

/// Writes the result where `--adapter` and PEFT expect it: an adapter into `output` itself; all parameters as a
/// checkpoint with this number type into `output/model`, together with the base's other files.
///
/// # Errors
/// A file operation was refused. An adapter is complete or not recognized: its configuration is written last.
pub fn write_result(
    output: &Path,
    weights: &TrainedWeights,
    base: &[(String, Vec<u8>)],
    save: SaveDtype,
) -> Result<PathBuf> {
    match weights {
        TrainedWeights::Adapter(adapter) => {
            write_adapter_files(output, adapter)?;
            Ok(output.to_owned())
        }
        TrainedWeights::Full(arrays) => {
            let target = output.join("model");
            let encoded = crate::checkpoint::encode_arrays_as(&target, arrays, save)?;
            let mut files: Vec<(&str, &[u8])> =
                base.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
            files.push(("model.safetensors", &encoded));
            replace_directory(&target, &files)?;
            Ok(target)
        }
    }
}

/// The other files of a checkpoint with all parameters: the configuration, with this number type, and the base's
/// tokenizer and side files.
///
/// # Errors
/// A file cannot be read.
pub async fn model_files(checkpoint: &Checkpoint, save: SaveDtype) -> Result<Vec<(String, Vec<u8>)>> {
    let unread = |error| {
        TrainError::recipe("model", "tokenizer and templates that can be read", error, "restore the files of the base")
    };
    let mut config = checkpoint.config().clone();
    crate::scratch::plain(&mut config, save);
    let mut files = vec![("config.json".to_owned(), format!("{config:#}\n").into_bytes())];
    let side = bayan_weights::directory::side_files(checkpoint.source().as_ref()).await.map_err(unread)?;
    files.extend(side.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)));
    Ok(files)
}

fn write_adapter_files(output: &Path, adapter: &Adapter) -> Result<()> {
    let config = output.join(ADAPTER_CONFIG);
    match std::fs::remove_file(&config) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(TrainError::io("remove", &config, source));
        }
        _ => {}
    }
    replace_file(&output.join(ADAPTER_MODEL), &adapter.encode_weights()?)?;
    replace_file(&config, &adapter.encode_config())
}
