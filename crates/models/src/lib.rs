//! Model architectures: layers, one file per architecture, and the table in which they are found by Hugging Face's
//! `model_type`.
//!
//! Model files repeat each other where architectures do. Rejected: a shared transformer with flags, because a file that
//! reads from top to bottom is easier to understand and change.

mod adapter;
mod arch;
mod cache;
mod config;
mod decoder;
mod error;
mod layers;
mod load;

use bayan_gpu::Gpu;
use bayan_weights::{Checkpoint, Policy};

pub use adapter::{
    ADAPTER_CONFIG, ADAPTER_MODEL, Adapter, AdapterConfig, AdapterError, AdapterModule, EmbeddingPair, Extras,
    PEFT_VERSION, Rules, TargetModules, TokenRows, WholeTensor, layer_of, tensor_names,
};
pub use arch::supported;
pub use cache::{BLOCK, Blocks, Cache, CacheFormat, CacheShape, LayerCache, LayerCacheSpec};
pub use config::{Fields, Sizes};
pub use decoder::{Decoder, StepInputs};
pub use error::ModelError;
pub use layers::{Linear, LoraPair, Rotary, TokenFactors};
pub use load::{
    DescribedTensor, Description, FirstValues, Loader, OnProgress, Parameter, Parameters, Placement, arena_sizes,
    describe, split_layers,
};

use arch::architecture;

/// Options for loading a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Largest number of positions of a sequence.
    pub context: usize,
}

/// The sizes in a checkpoint's configuration; no weight is read.
///
/// # Errors
/// An unknown architecture or impossible sizes.
pub fn sizes(checkpoint: &Checkpoint) -> Result<Sizes, ModelError> {
    Ok(describe(checkpoint.config())?.sizes)
}

/// What each layer stores in the cache, by a checkpoint's configuration; no weight is read.
///
/// # Errors
/// As [`sizes`].
pub fn cache_specs(checkpoint: &Checkpoint) -> Result<Vec<LayerCacheSpec>, ModelError> {
    Ok(describe(checkpoint.config())?.cache)
}

/// Opens a checkpoint on a device, or on the host for the interpreter when `gpu` is `None`.
///
/// # Errors
/// An invalid configuration, a tensor that does not match it or that the model does not read, or a device that cannot
/// hold the model.
pub async fn open(
    checkpoint: &Checkpoint,
    gpu: Option<&Gpu>,
    options: &LoadOptions,
    policy: Option<Policy>,
    on_progress: OnProgress<'_>,
) -> Result<Box<dyn Decoder>, ModelError> {
    let gpus: Vec<Gpu> = gpu.into_iter().cloned().collect();
    open_on(checkpoint, &Placement { gpus: &gpus, ..Default::default() }, options, policy, on_progress).await
}

/// As [`open`], with layers on several devices, or kept in host memory and copied to a device when they are used.
///
/// # Errors
/// As [`open`].
pub async fn open_on(
    checkpoint: &Checkpoint,
    placement: &Placement<'_>,
    options: &LoadOptions,
    policy: Option<Policy>,
    on_progress: OnProgress<'_>,
) -> Result<Box<dyn Decoder>, ModelError> {
    let config = Fields(checkpoint.config());
    let load = architecture(&config)?;
    let described = describe(checkpoint.config())?;
    load::refuse_apart(placement, &described)?;
    load::refuse_unread(checkpoint, &described).await?;
    let model_type = checkpoint.config().get("model_type").and_then(|kind| kind.as_str()).unwrap_or_default();
    let tensors = checkpoint.tensors().len();
    let form = policy.as_ref().map_or("as stored".to_owned(), |policy| format!("in {}", policy.linear.name()));
    tracing::info!("loading {}: {model_type}, {tensors} tensors, weights {form}", checkpoint.source().describe());
    let mut loader = Loader::new(checkpoint, *placement, policy, on_progress)?;
    let decoder = load(&config, options, &mut loader).await?;
    for gpu in placement.gpus {
        gpu.flush().await?;
    }
    Ok(decoder)
}

/// As [`open`], in f32, with all parameters in one arena in which they can be trained.
///
/// # Errors
/// As [`open`]; also a quantized checkpoint, or an architecture that changes tensors while loading them.
pub async fn open_to_train(
    checkpoint: &Checkpoint,
    gpu: Option<&Gpu>,
    options: &LoadOptions,
    on_progress: OnProgress<'_>,
) -> Result<(Box<dyn Decoder>, Parameters), ModelError> {
    let config = Fields(checkpoint.config());
    let load = architecture(&config)?;
    load::refuse_unread(checkpoint, &describe(checkpoint.config())?).await?;
    let gpus: Vec<Gpu> = gpu.into_iter().cloned().collect();
    let mut loader = Loader::new(checkpoint, Placement { gpus: &gpus, ..Default::default() }, None, on_progress)?;
    loader.train(Parameters::reserve(gpu, checkpoint)?);
    let decoder = load(&config, options, &mut loader).await?;
    if let Some(gpu) = gpu {
        gpu.flush().await?;
    }
    let taken = loader.take_parameters();
    let parameters = taken.ok_or_else(|| load::untrainable("model", "an arena of parameters", "none"))?;
    Ok((decoder, parameters))
}
