//! Model architectures: layers, one file per architecture, and the table that finds them by Hugging Face's
//! `model_type`.
//!
//! Model files repeat each other where architectures repeat each other: a file that reads from top to bottom is worth
//! more than a shared transformer with flags.

mod adapter;
mod cache;
mod cohere;
mod cohere2;
mod config;
mod decoder;
mod error;
mod falcon_h1;
mod gemma;
mod gemma2;
mod gemma3_text;
mod jais;
mod jais2;
mod layers;
mod lfm2;
mod llama;
mod load;
mod mistral;
mod needs;
mod olmo2;
mod parameters;
mod phi3;
mod placement;
mod qwen2;
mod qwen3;
mod rotary;

use std::sync::Arc;

use bayan_gpu::Gpu;
use bayan_tensor::ops::Activation;
use bayan_tensor::{State, Values};
use bayan_weights::{Checkpoint, LocalFuture, Policy};

pub use adapter::{
    ADAPTER_CONFIG, ADAPTER_MODEL, Adapter, AdapterConfig, AdapterError, AdapterModule, PEFT_VERSION, Rules,
    TargetModules, layer_of, tensor_names,
};
pub use cache::{Cache, CacheFormat, CacheShape, LayerCache, LayerNeeds};
pub use config::{Fields, Sizes};
pub use decoder::{Decoder, StepInputs};
pub use error::ModelError;
pub use layers::{Linear, LoraPart};
pub use load::{Loader, OnProgress};
pub use needs::cache_needs;
pub use parameters::{Parameter, Parameters, arena_sizes};
pub use placement::{Placement, split_layers};
pub use rotary::Rotary;

use layers::Embedding;

/// How to open a model.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Positions that one sequence can have.
    pub context: usize,
}

type Load = for<'a> fn(
    &'a Fields<'a>,
    &'a Opening,
    &'a mut Loader<'_>,
) -> LocalFuture<'a, Result<Box<dyn Decoder>, ModelError>>;

/// One line for each architecture.
static ARCHITECTURES: &[(&str, Load)] = &[
    ("cohere", |config, opening, loader| Box::pin(cohere::Cohere::load(config, opening, loader))),
    ("cohere2", |config, opening, loader| Box::pin(cohere2::Cohere2::load(config, opening, loader))),
    ("falcon_h1", |config, opening, loader| Box::pin(falcon_h1::FalconH1::load(config, opening, loader))),
    ("gemma", |config, opening, loader| Box::pin(gemma::Gemma::load(config, opening, loader))),
    ("gemma2", |config, opening, loader| Box::pin(gemma2::Gemma2::load(config, opening, loader))),
    ("gemma3_text", |config, opening, loader| Box::pin(gemma3_text::Gemma3Text::load(config, opening, loader))),
    ("jais", |config, opening, loader| Box::pin(jais::Jais::load(config, opening, loader))),
    ("jais2", |config, opening, loader| Box::pin(jais2::Jais2::load(config, opening, loader))),
    ("lfm2", |config, opening, loader| Box::pin(lfm2::Lfm2::load(config, opening, loader))),
    ("llama", |config, opening, loader| Box::pin(llama::Llama::load(config, opening, loader))),
    ("mistral", |config, opening, loader| Box::pin(mistral::Mistral::load(config, opening, loader))),
    ("olmo2", |config, opening, loader| Box::pin(olmo2::Olmo2::load(config, opening, loader))),
    ("phi3", |config, opening, loader| Box::pin(phi3::Phi3::load(config, opening, loader))),
    ("qwen2", |config, opening, loader| Box::pin(qwen2::Qwen2::load(config, opening, loader))),
    ("qwen3", |config, opening, loader| Box::pin(qwen3::Qwen3::load(config, opening, loader))),
];

/// The `model_type`s that can be opened.
pub fn supported() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name).collect()
}

/// The sizes in a checkpoint's configuration, without reading a weight.
///
/// # Errors
/// An unknown architecture or impossible sizes.
pub fn sizes(checkpoint: &Checkpoint) -> Result<Sizes, ModelError> {
    architecture(checkpoint)?;
    Sizes::read(&Fields(checkpoint.config()), false)
}

fn architecture(checkpoint: &Checkpoint) -> Result<Load, ModelError> {
    let model_type = Fields(checkpoint.config()).text("model_type").unwrap_or("nothing");
    let found = ARCHITECTURES.iter().find(|(name, _)| *name == model_type);
    found.map(|(_, load)| *load).ok_or_else(|| ModelError::Architecture {
        model_type: model_type.to_string(),
        supported: supported().join(", "),
    })
}

/// Opens a checkpoint onto a device, or onto the host for the interpreter when `gpu` is `None`.
///
/// # Errors
/// A configuration, a tensor or a device that does not fit.
pub async fn open(
    checkpoint: &Checkpoint,
    gpu: Option<&Gpu>,
    opening: &Opening,
    policy: Option<Policy>,
    on_progress: OnProgress<'_>,
) -> Result<Box<dyn Decoder>, ModelError> {
    let gpus: Vec<Gpu> = gpu.into_iter().cloned().collect();
    open_placed(checkpoint, &Placement { gpus: &gpus, ..Default::default() }, opening, policy, on_progress).await
}

/// As [`open`], with layers on several devices, or kept in host memory and brought to a device when they are used.
///
/// # Errors
/// As [`open`].
pub async fn open_placed(
    checkpoint: &Checkpoint,
    placement: &Placement<'_>,
    opening: &Opening,
    policy: Option<Policy>,
    on_progress: OnProgress<'_>,
) -> Result<Box<dyn Decoder>, ModelError> {
    let load = architecture(checkpoint)?;
    let mut loader = Loader::new(checkpoint, *placement, policy, on_progress)?;
    let decoder = load(&Fields(checkpoint.config()), opening, &mut loader).await?;
    for gpu in placement.gpus {
        gpu.flush().await?;
    }
    Ok(decoder)
}

/// As [`open`], in f32, with every parameter in an arena where it can be trained.
///
/// # Errors
/// As [`open`]; a quantized checkpoint, or an architecture that changes tensors when it loads them.
pub async fn open_to_train(
    checkpoint: &Checkpoint,
    gpu: Option<&Gpu>,
    opening: &Opening,
    on_progress: OnProgress<'_>,
) -> Result<(Box<dyn Decoder>, Parameters), ModelError> {
    let load = architecture(checkpoint)?;
    let gpus: Vec<Gpu> = gpu.into_iter().cloned().collect();
    let mut loader = Loader::new(checkpoint, Placement { gpus: &gpus, ..Default::default() }, None, on_progress)?;
    loader.train(Parameters::reserve(gpu, checkpoint)?);
    let decoder = load(&Fields(checkpoint.config()), opening, &mut loader).await?;
    if let Some(gpu) = gpu {
        gpu.flush().await?;
    }
    let taken = loader.take_parameters();
    let parameters = taken.ok_or_else(|| parameters::untrainable("model", "an arena of parameters", "none"))?;
    Ok((decoder, parameters))
}

/// A table of cosines and sines on the device.
struct Table {
    state: Arc<State>,
    dim: usize,
}

fn rotary_table(
    config: &Fields<'_>,
    sizes: &Sizes,
    opening: &Opening,
    loader: &Loader<'_>,
) -> Result<Table, ModelError> {
    let rotary = Rotary::read(config, sizes.head_dim, sizes.max_position_embeddings, opening.context)?;
    let dim = 2 * rotary.frequencies.len();
    let state =
        State::new(loader.gpu(), "rotary table", &[opening.context, dim], Values::F32(rotary.table(opening.context)))?;
    Ok(Table { state, dim })
}

async fn lm_head(sizes: &Sizes, embedding: &Embedding, loader: &mut Loader<'_>) -> Result<Linear, ModelError> {
    if sizes.tie_word_embeddings {
        return Ok(Linear::single("lm_head", embedding.weight.clone(), None));
    }
    Linear::load(loader, "", &[("lm_head", sizes.vocab_size)], sizes.hidden_size, false).await
}

fn activation(config: &Fields<'_>) -> Result<Activation, ModelError> {
    match config.text("hidden_activation").or(config.text("hidden_act")).unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        "relu2" => Ok(Activation::Relu2),
        _ => config.refuse("hidden_act", "silu, gelu_pytorch_tanh or relu2"),
    }
}

/// The window of each layer: Qwen puts it on the layers from `max_window_layers` on, and only where
/// `use_sliding_window` says so; newer files list `layer_types`.
fn qwen_windows(config: &Fields<'_>, sizes: &Sizes) -> Result<Vec<Option<usize>>, ModelError> {
    let window = if config.flag("use_sliding_window", false)? { config.optional_size("sliding_window")? } else { None };
    let first = config.number("max_window_layers", 0.0)? as usize;
    let types = config.get("layer_types").and_then(|v| v.as_array());
    Ok((0..sizes.num_hidden_layers)
        .map(|layer| match types.and_then(|types| types.get(layer)).and_then(|t| t.as_str()) {
            Some(kind) => window.filter(|_| kind == "sliding_attention"),
            None => window.filter(|_| layer >= first),
        })
        .collect())
}
