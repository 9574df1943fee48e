//! The architectures, one file each, named after their `model_type`, and the table in which they are looked up.

mod cohere;
mod cohere2;
mod falcon_h1;
mod gemma;
mod gemma2;
mod gemma3_text;
mod gemma4_text;
mod granite;
mod jais;
mod jais2;
mod lfm2;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5_text;
mod smollm3;

use bayan_weights::LocalFuture;

use crate::config::{Fields, Sizes};
use crate::decoder::Decoder;
use crate::load::Loader;
use crate::{LoadOptions, ModelError};

type Load = for<'a> fn(
    &'a Fields<'a>,
    &'a LoadOptions,
    &'a mut Loader<'_>,
) -> LocalFuture<'a, Result<Box<dyn Decoder>, ModelError>>;

/// One line per architecture.
static ARCHITECTURES: &[(&str, Load)] = &[
    ("cohere", |config, options, loader| Box::pin(cohere::Cohere::load(config, options, loader))),
    ("cohere2", |config, options, loader| Box::pin(cohere2::Cohere2::load(config, options, loader))),
    ("falcon_h1", |config, options, loader| Box::pin(falcon_h1::FalconH1::load(config, options, loader))),
    ("gemma", |config, options, loader| Box::pin(gemma::Gemma::load(config, options, loader))),
    ("gemma2", |config, options, loader| Box::pin(gemma2::Gemma2::load(config, options, loader))),
    ("gemma3_text", |config, options, loader| Box::pin(gemma3_text::Gemma3Text::load(config, options, loader))),
    ("gemma4_text", |config, options, loader| Box::pin(gemma4_text::Gemma4Text::load(config, options, loader))),
    ("granite", |config, options, loader| Box::pin(granite::Granite::load(config, options, loader))),
    ("jais", |config, options, loader| Box::pin(jais::Jais::load(config, options, loader))),
    ("jais2", |config, options, loader| Box::pin(jais2::Jais2::load(config, options, loader))),
    ("lfm2", |config, options, loader| Box::pin(lfm2::Lfm2::load(config, options, loader))),
    ("llama", |config, options, loader| Box::pin(llama::Llama::load(config, options, loader))),
    ("mistral", |config, options, loader| Box::pin(mistral::Mistral::load(config, options, loader))),
    ("olmo2", |config, options, loader| Box::pin(olmo2::Olmo2::load(config, options, loader))),
    ("phi3", |config, options, loader| Box::pin(phi3::Phi3::load(config, options, loader))),
    ("qwen2", |config, options, loader| Box::pin(qwen2::Qwen2::load(config, options, loader))),
    ("qwen3", |config, options, loader| Box::pin(qwen3::Qwen3::load(config, options, loader))),
    ("qwen3_5_text", |config, options, loader| Box::pin(qwen3_5_text::Qwen35Text::load(config, options, loader))),
    ("smollm3", |config, options, loader| Box::pin(smollm3::SmolLm3::load(config, options, loader))),
];

/// The supported `model_type`s.
pub fn supported() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name).collect()
}

/// The `load` function of a configuration's architecture.
pub(crate) fn architecture(config: &Fields<'_>) -> Result<Load, ModelError> {
    let model_type = config.text("model_type").unwrap_or("nothing");
    let found = ARCHITECTURES.iter().find(|(name, _)| *name == model_type);
    found.map(|(_, load)| *load).ok_or_else(|| ModelError::Architecture {
        model_type: model_type.to_string(),
        supported: supported().join(", "),
    })
}

/// The window of each layer. Qwen has windows on the layers from `max_window_layers` on, and only if
/// `use_sliding_window` is true; newer configurations list `layer_types`.
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
