//! An estimate of a run's memory, made before anything is loaded.
//!
//! A sum of formulas over the model's sizes; each term is shown to the user on its own line. Rejected: trying and
//! failing, because on most systems the desktop crashes first. The constants in [`Calibration`] describe the engine;
//! they come from its measured peaks.
//!
//! A micro-batch has n tokens of which r are trained (both rounded up as in the engine); D, F, H, K, d, V, L are the
//! model's sizes:
//!
//! | part | bytes |
//! | --- | --- |
//! | base | the size of the checkpoint's tensors in their format on the device |
//! | weights, gradients, optimizer | 4 P, 4 P, 8 P for P trained parameters (adapter pairs, or all) |
//! | keys and values | 4 n · 2 K d · L |
//! | a layer | 4 D + 2 H d + 3 F + the ranks of its pairs; + (H + 2 K) d with q/k norms; + W + M + I with Mamba-2 |
//! | saved activations | with checkpointing: 4 n D L; otherwise 4 n L · layer |
//! | saved activations in f16 | half of that for all layers but the last, except for what stays in f32: H d and the
//! ranks |
//! | temporary buffers | the memory at the peak beyond the saved activations: the largest of the following |
//! | the loss | 4 r (C + 2 D) for C logits of a row at a time |
//! | gradients of the MLP | the layer and 2 F |
//! | gradients of attention | the layer without its MLP's 2 D + 3 F, and 2 H d + 2 K d |
//! | gradients of Mamba-2 | 3 D + W + 2 M + 5 I + 4 n, with projection width W, convolution width M and inner width I |
//! | packing | a share of the temporary buffers: no buffer is both read and written by one dispatch, so some memory is
//! unused |
//! | states | 4 bytes for each number of the layers' cached states other than keys and values |
//! | fixed | the rotary table |
//!
//! The comparison is with [`Gpu::peak_allocated_bytes`](bayan_gpu::Gpu::peak_allocated_bytes), which counts every
//! buffer of the engine.

use std::fmt;

use bayan_models::Sizes;

use bayan_tensor::ops::QUERY_TILE;

use crate::engine::{TrainerOptions, rounded};
use crate::recipe::Recipe;

/// Constants of the engine's implementation, found by measuring.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibration {
    /// Most logits in memory at a time.
    pub logits_budget: usize,
    /// The allocated temporary buffers divided by what of it is needed at the peak.
    pub packing: f64,
    /// Bytes that every model needs.
    pub fixed_bytes: u64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { logits_budget: TrainerOptions::default().logits_budget, packing: 1.15, fixed_bytes: 64 << 10 }
    }
}

/// Widths of a Mamba-2 layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateSpaceSizes {
    /// Width of the input projection: gate, convolution input, and a step size for each head.
    pub projection: usize,
    /// Width of the convolution: x, B and C.
    pub mixed: usize,
    /// Width of x.
    pub inner: usize,
}

/// The inputs of the estimate.
#[derive(Debug, Clone, Copy)]
pub struct MemoryInputs<'a> {
    /// The model.
    pub sizes: &'a Sizes,
    /// Bytes of the frozen base on the device, in its format; 0 when all parameters are trained.
    pub base_bytes: u64,
    /// Trained parameters.
    pub trained_parameters: u64,
    /// Adapter ranks summed over the pairs of one layer.
    pub ranks_per_layer: u64,
    /// Whether queries and keys are normalised.
    pub qk_norm: bool,
    /// Widths of the Mamba-2 layer beside attention, where there is one.
    pub state_space: Option<StateSpaceSizes>,
    /// Cached numbers of all layers other than keys and values.
    pub states: u64,
    /// Tokens of the largest micro-batch.
    pub tokens: usize,
    /// Trained tokens in it.
    pub trained_tokens: usize,
    /// The longest sequence (at most `max_seq_length`).
    pub longest_sequence: usize,
}

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryEstimate {
    /// The frozen base.
    pub base: u64,
    /// Trained weights.
    pub weights: u64,
    /// Gradients.
    pub gradients: u64,
    /// Both moments of AdamW.
    pub optimizer: u64,
    /// Keys and values of all layers.
    pub cache: u64,
    /// Saved activations.
    pub activations: u64,
    /// The memory that exists only while the loss or one layer runs.
    pub working: u64,
    /// The rest.
    pub fixed: u64,
}

impl MemoryEstimate {
    /// The sum.
    pub fn total(&self) -> u64 {
        let parts = [
            self.base,
            self.weights,
            self.gradients,
            self.optimizer,
            self.cache,
            self.activations,
            self.working,
            self.fixed,
        ];
        parts.iter().fold(0, |sum, part| sum.saturating_add(*part))
    }
}

/// Trained parameters of an adapter: r (in + out) summed over its pairs.
pub fn adapter_parameters(pairs: impl IntoIterator<Item = (usize, usize, usize)>) -> u64 {
    pairs.into_iter().map(|(rank, input, output)| rank as u64 * (input as u64 + output as u64)).sum()
}

/// The estimate for a recipe.
pub fn estimate(recipe: &Recipe, inputs: &MemoryInputs<'_>, calibration: &Calibration) -> MemoryEstimate {
    let sizes = inputs.sizes;
    let size = |n: usize| n as f64;
    let (d_model, d_ff, vocabulary, layers) =
        (size(sizes.hidden_size), size(sizes.intermediate_size), size(sizes.vocab_size), size(sizes.num_hidden_layers));
    let heads = size(sizes.num_attention_heads);
    let qkv = (heads + 2.0 * size(sizes.num_key_value_heads)) * size(sizes.head_dim);
    let attended = heads * size(sizes.head_dim);
    let cached = qkv - attended;
    let tokens = size(rounded(inputs.tokens, 2 * QUERY_TILE));
    let rows = size(rounded(inputs.trained_tokens.max(1), 16));
    let of_mlp = 2.0 * d_model + 3.0 * d_ff;
    let norms = if inputs.qk_norm { qkv } else { 0.0 };
    // Per token: the saved activations of a layer, and the memory needed while the gradient of each of its parts is
    // computed.
    let space = inputs.state_space.map(|space| [space.projection, space.mixed, space.inner].map(size));
    let layer = 2.0 * d_model
        + of_mlp
        + 2.0 * attended
        + inputs.ranks_per_layer as f64
        + norms
        + space.map_or(0.0, |widths| widths.iter().sum());
    let mlp = layer + 2.0 * d_ff;
    let attention = layer - of_mlp + 2.0 * attended + cached;
    let mamba = space.map_or(0.0, |[projection, mixed, inner]| {
        3.0 * d_model + projection + 2.0 * mixed + 5.0 * inner + 4.0 * tokens
    });
    let each = if recipe.grad_checkpoint { d_model } else { layer };
    // In f16 the saved activations of all layers but the last are packed, with one more word for each row; the output
    // of attention and the LoRA activations stay in f32.
    let packed = match (recipe.f16, recipe.grad_checkpoint) {
        (false, _) => each,
        (true, true) => d_model / 2.0 + 1.0,
        (true, false) => {
            let whole = attended + inputs.ranks_per_layer as f64;
            (layer - whole) / 2.0 + whole + 6.0 + heads
        }
    };
    let kept = packed * (layers - 1.0).max(0.0) + each;
    let chunk = (size(calibration.logits_budget) / rows).min(vocabulary);
    let loss = rows / tokens * (chunk + 2.0 * d_model);
    // Without checkpointing the last layer's own activations are already counted as saved.
    let there = if recipe.grad_checkpoint { 0.0 } else { layer };
    let working = [loss, mlp - there, attention - there, mamba - there].into_iter().fold(0.0, f64::max);
    let bytes = |elements: f64| (4.0 * tokens * elements) as u64;
    let parameters = inputs.trained_parameters;
    let table = 4 * (inputs.longest_sequence * sizes.head_dim) as u64;
    MemoryEstimate {
        base: inputs.base_bytes,
        weights: parameters.saturating_mul(4),
        gradients: parameters.saturating_mul(4),
        optimizer: parameters.saturating_mul(8),
        cache: bytes(cached * layers).saturating_add(inputs.states.saturating_mul(4)),
        activations: bytes(kept),
        working: bytes(working * calibration.packing),
        fixed: calibration.fixed_bytes + table,
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = [
            ("base weights", self.base),
            ("trained weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("keys and values", self.cache),
            ("saved activations", self.activations),
            ("temporary buffers", self.working),
            ("fixed overhead", self.fixed),
            ("total", self.total()),
        ];
        for (name, bytes) in lines {
            writeln!(f, "{name:<18} {:>9.1} MiB", bytes as f64 / (1 << 20) as f64)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes() -> Sizes {
        Sizes {
            hidden_size: 2048,
            intermediate_size: 6144,
            num_hidden_layers: 28,
            num_attention_heads: 16,
            num_key_value_heads: 8,
            head_dim: 128,
            vocab_size: 151_936,
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
        }
    }

    #[test]
    fn every_choice_moves_the_part_that_it_should() {
        let sizes = sizes();
        let inputs = MemoryInputs {
            sizes: &sizes,
            base_bytes: 1 << 30,
            trained_parameters: 10_000_000,
            ranks_per_layer: 112,
            qk_norm: true,
            state_space: None,
            states: 0,
            tokens: 1792,
            trained_tokens: 512,
            longest_sequence: 900,
        };
        let of = |change: fn(&mut Recipe)| {
            let mut recipe = Recipe { max_seq_length: 1024, batch_size: 2, ..Recipe::default() };
            change(&mut recipe);
            estimate(&recipe, &inputs, &Calibration { packing: 1.0, ..Calibration::default() })
        };
        let plain = of(|_| {});
        assert_eq!((plain.weights, plain.gradients, plain.optimizer), (40_000_000, 40_000_000, 80_000_000));
        assert_eq!(plain.activations, 1792 * 4 * 2048 * 28);
        // The MLP's gradients take more memory than the logits.
        assert_eq!(plain.working, 1792 * 4 * (4 * 2048 + 2 * 2048 + 5 * 6144 + 112 + 4096));
        assert!(of(|r| r.grad_checkpoint = false).activations > 10 * plain.activations);
        assert!(2 * of(|r| r.f16 = true).activations < plain.activations + 1792 * 4 * 2100 * 2);
        let whole = of(|r| r.grad_checkpoint = false).activations;
        let half = of(|r| (r.grad_checkpoint, r.f16) = (false, true)).activations;
        assert!(half < whole * 6 / 10 && half > whole / 2, "{half} of {whole}");
        assert!(plain.total() > plain.base + plain.activations && plain.to_string().contains("total"));
        assert_eq!(adapter_parameters([(8, 128, 64), (4, 10, 10)]), 8 * 192 + 80);
    }
}
