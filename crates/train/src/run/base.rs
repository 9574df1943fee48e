//! Facts about the base before it is loaded, and whether a checkpoint belongs to a recipe.

use bayan_models::{AdapterConfig, Rules, Sizes};
use bayan_weights::{Checkpoint, Policy, Stored, TensorEntry, format_by_name};

use super::RunData;
use crate::MicroBatch;
use crate::checkpoint::Resumed;
use crate::error::{Result, TrainError};
use crate::memory::{MemoryInputs, StateSpaceSizes, adapter_parameters};
use crate::recipe::Recipe;

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

/// Checks that a checkpoint belongs to this recipe: only fields that affect logs, checkpoints and evaluations may
/// differ.
///
/// # Errors
/// It belongs to another recipe; the error names the first field that differs.
pub fn check_recipe(resumed: &Resumed, recipe: &Recipe) -> Result<()> {
    const FREE: [&str; 16] = [
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
        "eval",
        "eval_data",
        "eval_limit",
        "early_stopping_patience",
        "precompute_reference",
        "save_dtype",
    ];
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
    Ok(())
}
