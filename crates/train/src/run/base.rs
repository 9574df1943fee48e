//! The start and the end of a run: facts about the base before it is loaded, the run's directory, and writing the
//! result.

use std::path::{Path, PathBuf};

use bayan_models::{ADAPTER_CONFIG, ADAPTER_MODEL, Adapter, AdapterConfig, Rules, Sizes};
use bayan_weights::{Checkpoint, Policy, Stored, TensorEntry, format_by_name};

use super::RunData;
use crate::MicroBatch;
use crate::checkpoint::{Checkpoints, Resumed, TrainedWeights};
use crate::error::{Result, TrainError};
use crate::files::{replace_directory, replace_file};
use crate::log::LOG_FILE;
use crate::memory::{MemoryInputs, StateSpaceSizes, adapter_parameters};
use crate::recipe::{Recipe, SaveDtype};
use crate::scratch::INITIAL;

/// File of the run's directory with its recipe.
pub const RECIPE_FILE: &str = "recipe.toml";

/// Facts about a base model from its headers.
#[derive(Debug, Clone)]
pub struct BaseInfo {
    /// Sizes from its configuration.
    pub sizes: Sizes,
    /// Bytes on the device, in the format in which it is loaded.
    pub base_bytes: u64,
    /// The adapter's configuration with expanded targets.
    pub adapter: AdapterConfig,
    /// Rank, inputs and outputs of each pair.
    pub pairs: Vec<(usize, usize, usize)>,
    /// Number of parameters of the checkpoint.
    pub parameters: u64,
    /// Numbers in the arena when all parameters are trained, padding included.
    pub arena: u64,
    /// Whether queries and keys are normalised.
    pub qk_norm: bool,
    /// Widths of the Mamba-2 layers beside attention, where there are any.
    pub state_space: Option<StateSpaceSizes>,
    /// Cached numbers of all layers other than keys and values.
    pub states: u64,
}

impl BaseInfo {
    /// Reads only headers.
    ///
    /// # Errors
    /// The architecture is unknown, or it does not have the targets.
    pub fn of(checkpoint: &Checkpoint, recipe: &Recipe, policy: Option<&Policy>) -> Result<BaseInfo> {
        let unknown = |error: bayan_models::ModelError| {
            TrainError::recipe("model", "a model that can be opened", error, "see `bayan inspect`")
        };
        let sizes = bayan_models::sizes(checkpoint).map_err(unknown)?;
        let quantized =
            checkpoint.tensors().iter().find(|tensor| recipe.full && !matches!(tensor.stored, Stored::Dense(_)));
        if let Some(tensor) = quantized {
            let got = format!("{} in {}", tensor.name, tensor.stored.name());
            return Err(TrainError::recipe(
                "full",
                "a base that is not quantized",
                got,
                "name an unquantized checkpoint, or train an adapter",
            ));
        }
        let linears: Vec<(String, &TensorEntry)> =
            checkpoint.tensors().iter().filter_map(|tensor| Some((linear_name(tensor)?, tensor))).collect();
        let names: Vec<String> = linears.iter().map(|(name, _)| name.clone()).collect();
        let (adapter, pairs) = if recipe.full {
            (recipe.adapter_config()?, vec![])
        } else {
            let (adapter, chosen) = recipe.adapter_config_for(&names)?;
            let rules: Rules = adapter.rules()?;
            let pair = |name: &String| {
                let tensor = linears.iter().find(|(known, _)| known == name).map(|(_, tensor)| *tensor);
                Ok((rules.rank(name)?, tensor.map_or(0, TensorEntry::k), tensor.map_or(0, TensorEntry::rows)))
            };
            let pairs = chosen.iter().map(pair).collect::<Result<Vec<_>>>()?;
            (adapter, pairs)
        };
        let parameters = checkpoint.tensors().iter().map(TensorEntry::count).sum();
        let qk_norm = checkpoint.names().any(|name| name.ends_with("q_norm.weight"));
        let (matrices, vectors) = bayan_models::arena_sizes(checkpoint);
        let arena = (matrices as u64).saturating_add(vectors as u64);
        let specs = bayan_models::cache_specs(checkpoint).map_err(unknown)?;
        let states =
            specs.iter().flat_map(|layer| &layer.states).fold(0u64, |sum, &state| sum.saturating_add(state as u64));
        let base_bytes = loaded_bytes(checkpoint, policy);
        Ok(BaseInfo {
            sizes,
            base_bytes,
            adapter,
            pairs,
            parameters,
            arena,
            qk_norm,
            state_space: state_space(checkpoint),
            states,
        })
    }

    /// Number of trained parameters.
    pub fn trained_parameters(&self, recipe: &Recipe) -> u64 {
        if recipe.full { self.parameters } else { adapter_parameters(self.pairs.iter().copied()) }
    }

    /// The inputs of the memory estimate.
    pub fn memory_inputs<'a>(
        &'a self,
        recipe: &Recipe,
        data: &RunData,
        (largest, trained): (&MicroBatch, usize),
    ) -> MemoryInputs<'a> {
        let ranks: u64 = self.pairs.iter().map(|pair| pair.0 as u64).sum();
        MemoryInputs {
            sizes: &self.sizes,
            base_bytes: if recipe.full { 0 } else { self.base_bytes },
            trained_parameters: if recipe.full { self.arena } else { self.trained_parameters(recipe) },
            ranks_per_layer: ranks.div_ceil(self.sizes.num_hidden_layers.max(1) as u64),
            qk_norm: self.qk_norm,
            state_space: self.state_space,
            states: self.states,
            tokens: largest.ids.len(),
            trained_tokens: trained,
            longest_sequence: data.longest(),
        }
    }
}

/// The widths of the first layer's Mamba-2, or gated delta rule; they are the same in all such layers.
fn state_space(checkpoint: &Checkpoint) -> Option<StateSpaceSizes> {
    let rows =
        |end: &str| checkpoint.tensors().iter().find(|tensor| tensor.name.ends_with(end))?.shape.first().copied();
    if let (Some(mixed), Some(inner)) = (rows("linear_attn.in_proj_qkv.weight"), rows("linear_attn.in_proj_z.weight")) {
        return Some(StateSpaceSizes { projection: mixed.saturating_add(inner), mixed, inner });
    }
    let (projection, mixed, heads) =
        (rows("mamba.in_proj.weight")?, rows("mamba.conv1d.weight")?, rows("mamba.A_log")?);
    Some(StateSpaceSizes { projection, mixed, inner: projection.saturating_sub(mixed.saturating_add(heads)) })
}

/// The linear module whose weight this tensor is, if any.
fn linear_name(tensor: &TensorEntry) -> Option<String> {
    let module = tensor.name.strip_suffix(".weight").filter(|_| tensor.shape.len() == 2)?;
    (!module.contains("embed")).then(|| module.to_owned())
}

/// Bytes of a checkpoint's tensors on a device, where vectors are f32.
pub fn loaded_bytes(checkpoint: &Checkpoint, policy: Option<&Policy>) -> u64 {
    let format = |tensor: &TensorEntry| {
        if tensor.shape.len() == 2 { Some(tensor.loaded_format(policy)) } else { format_by_name("f32") }
    };
    let bytes = |tensor: &TensorEntry| {
        let format = format(tensor)?;
        let row: u64 =
            (0..format.planes().len()).map(|plane| format.row_bytes(plane, tensor.k().next_multiple_of(32))).sum();
        let rows = if tensor.shape.len() == 2 { tensor.rows().next_multiple_of(32) } else { tensor.rows() };
        Some(row.saturating_mul(rows as u64))
    };
    checkpoint.tensors().iter().filter_map(bytes).fold(0, u64::saturating_add)
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
    const FREE: [&str; 13] = [
        "preset",
        "data",
        "valid_data",
        "output",
        "model",
        "log_every",
        "save_every",
        "keep_last",
        "keep_best",
        "eval_every",
        "early_stopping_patience",
        "precompute_reference",
        "save_dtype",
    ];
    let Some(resumed) = Checkpoints::new(output, recipe.keep_last).resume()? else { return Ok(None) };
    let now = serde_json::to_value(recipe).unwrap_or_default();
    let fields = now.as_object().into_iter().flatten().filter(|(name, _)| !FREE.contains(&name.as_str()));
    for (name, value) in fields {
        let before = resumed.state.recipe.get(name).unwrap_or(&serde_json::Value::Null);
        if before != value {
            let got = format!("{name} = {value}");
            return Err(TrainError::checkpoint(
                &resumed.path,
                format!("{name} = {before}, as at the start of the run"),
                got,
                "leave the flag out, or start a new run",
            ));
        }
    }
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
