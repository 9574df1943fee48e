//! What a model needs remembered, by its configuration alone: for estimates before anything is loaded.
//!
//! A decoder says the same of itself once it is there ([`crate::Decoder::cache_needs`]), and a test holds the two
//! together. Asking a decoder that was loaded without its weights lost: it would be a second way of loading for every
//! architecture.

use bayan_weights::Checkpoint;

use super::LayerNeeds;
use crate::ModelError;
use crate::arch::{self, cohere2, gemma2, gemma3_text, lfm2};
use crate::config::{Fields, Sizes};

/// What each layer needs remembered.
///
/// # Errors
/// An unknown architecture or impossible sizes.
pub fn cache_needs(checkpoint: &Checkpoint) -> Result<Vec<LayerNeeds>, ModelError> {
    let sizes = crate::sizes(checkpoint)?;
    let config = Fields(checkpoint.config());
    let width = sizes.num_key_value_heads * sizes.head_dim;
    let windows = windows(&config, &sizes)?;
    let mut needs: Vec<LayerNeeds> =
        windows.into_iter().map(|window| LayerNeeds { width, window, states: Vec::new() }).collect();
    match config.text("model_type") {
        Some("lfm2") => {
            let kernel = config.optional_size("conv_L_cache")?.unwrap_or(3);
            for (layer, is_attention) in needs.iter_mut().zip(lfm2::attention_layers(&config, &sizes)) {
                if !is_attention {
                    *layer = LayerNeeds { states: vec![(kernel - 1) * sizes.hidden_size], ..Default::default() };
                }
            }
        }
        Some("falcon_h1") => {
            let inner = match config.optional_size("mamba_d_ssm")? {
                Some(inner) => inner,
                None => config.optional_size("mamba_expand")?.unwrap_or(2).saturating_mul(sizes.hidden_size),
            };
            let (groups, state) = (config.optional_size("mamba_n_groups")?.unwrap_or(1), config.size("mamba_d_state")?);
            let kernel = config.optional_size("mamba_d_conv")?.unwrap_or(4);
            let channels = groups.saturating_mul(state).saturating_mul(2).saturating_add(inner);
            let states = vec![(kernel - 1).saturating_mul(channels), inner.saturating_mul(state)];
            needs.iter_mut().for_each(|layer| layer.states = states.clone());
        }
        _ => {}
    }
    Ok(needs)
}

fn windows(config: &Fields<'_>, sizes: &Sizes) -> Result<Vec<Option<usize>>, ModelError> {
    let layers = sizes.num_hidden_layers;
    match config.text("model_type") {
        Some("mistral" | "phi3") => Ok(vec![config.optional_size("sliding_window")?; layers]),
        Some("qwen2" | "qwen3") => arch::qwen_windows(config, sizes),
        Some("gemma2") => config.windows(layers, gemma2::PATTERN),
        Some("gemma3_text") => config.windows(layers, gemma3_text::PATTERN),
        Some("cohere2") => config.windows(layers, cohere2::PATTERN),
        _ => Ok(vec![None; layers]),
    }
}
