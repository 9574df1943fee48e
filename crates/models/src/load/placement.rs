//! Distribution of the layers over several devices, for a model that one device cannot hold.
//!
//! Whole layers are distributed in order: a token passes through the devices one after the other, and only the residual
//! stream is transferred. Rejected: splitting every matrix over all devices, because the devices would exchange sums
//! twice per layer, which costs more through the host than it saves.

use bayan_gpu::Gpu;
use bayan_tensor::Cpu;
use bayan_weights::{Checkpoint, Policy, TensorEntry};

use super::recorder::Description;
use crate::ModelError;
use crate::adapter::layer_of;

/// The devices of a model's layers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Placement<'a> {
    /// The devices; empty: the host, for the interpreter.
    pub gpus: &'a [Gpu],
    /// The CPU that runs the model, if one does.
    pub cpu: Option<&'a Cpu>,
    /// The device index of each layer; layers beyond the list are on the first device.
    pub layers: &'a [usize],
    /// Number of layers whose matrices stay on their device; the matrices of the others are kept in host memory and
    /// copied to the device when they are used. `None`: all layers.
    pub gpu_layers: Option<usize>,
}

impl Placement<'_> {
    pub(crate) fn gpu(&self, device: usize) -> Option<&Gpu> {
        self.gpus.get(device).or(self.gpus.first())
    }

    pub(crate) fn of_layer(&self, layer: usize) -> usize {
        self.layers.get(layer).copied().unwrap_or(0)
    }
}

/// Bytes of a tensor in the format in which it is loaded.
fn loaded_bytes(entry: &TensorEntry, policy: Option<&Policy>) -> u64 {
    let format = entry.loaded_format(policy);
    let planes = (0..format.planes().len()).map(|plane| format.row_bytes(plane, entry.k()));
    planes.fold(0u64, |sum, bytes| sum.saturating_add(bytes.saturating_mul(entry.rows() as u64)))
}

/// The device of each layer, such that the weights per device are in these proportions. The embedding counts for the
/// first device, and the output head for the last. Every device gets a layer. Layers that read the keys and values of
/// an earlier one are on its device, with all layers between them.
///
/// # Errors
/// An unknown architecture, fewer layers than devices, or shares that are not positive.
pub fn split_layers(
    checkpoint: &Checkpoint,
    policy: Option<&Policy>,
    shares: &[f64],
) -> Result<Vec<usize>, ModelError> {
    let described = crate::describe(checkpoint.config())?;
    let all = described.sizes.num_hidden_layers;
    let read_by_others = described.cache.iter().filter_map(|layer| layer.shares).min();
    // The layers from the first that others read on are one.
    let count = read_by_others.map_or(all, |first| first + 1);
    let refuse = |expected: &str, got: String| Err(ModelError::Split { expected: expected.to_string(), got });
    if shares.is_empty() || shares.len() > count {
        return refuse(
            &format!("at most one device for each of the {count} layers that can be on different ones"),
            format!("{} devices", shares.len()),
        );
    }
    if !shares.iter().all(|share| share.is_finite() && *share > 0.0) {
        return refuse("shares above 0", format!("{shares:?}"));
    }
    let mut layers = vec![0u64; count];
    let (mut before, mut after) = (0u64, 0u64);
    for entry in checkpoint.tensors() {
        let bytes = loaded_bytes(entry, policy);
        match layer_of(&entry.name) {
            Some(layer) if layer < all => {
                let at = layer.min(count - 1);
                layers[at] = layers[at].saturating_add(bytes);
            }
            _ if entry.name.starts_with("lm_head") => after = after.saturating_add(bytes),
            _ => before = before.saturating_add(bytes),
        }
    }
    let total = layers.iter().map(|&bytes| bytes as f64).sum::<f64>() + before as f64 + after as f64;
    let sum: f64 = shares.iter().sum();
    let mut reached = before as f64;
    let mut devices: Vec<usize> = Vec::with_capacity(count);
    for (layer, &bytes) in layers.iter().enumerate() {
        let middle = (reached + bytes as f64 / 2.0) / total.max(1.0) * sum;
        reached += bytes as f64;
        let mut end = 0.0;
        let wanted = shares.iter().position(|share| {
            end += share;
            middle < end
        });
        // Each of the following devices needs at least one layer, and no device may be skipped.
        let least = shares.len().saturating_sub(count - layer);
        let most = devices.last().map_or(0, |last| last + 1).min(shares.len() - 1);
        devices.push(wanted.unwrap_or(shares.len() - 1).max(least).min(most));
    }
    devices.resize(all, devices.last().copied().unwrap_or(0));
    Ok(devices)
}

/// The device of the final norm and the output head: the last one, or the embedding's where the head is tied to it.
pub(crate) fn device_after(checkpoint: &Checkpoint, placement: &Placement<'_>) -> Result<usize, ModelError> {
    let sizes = crate::sizes(checkpoint)?;
    Ok(if sizes.tie_word_embeddings { 0 } else { placement.layers.last().copied().unwrap_or(0) })
}

/// Fails if a layer that reads another's keys and values is on another device.
pub(crate) fn refuse_apart(placement: &Placement<'_>, described: &Description) -> Result<(), ModelError> {
    for (layer, spec) in described.cache.iter().enumerate() {
        let apart = |from: &usize| placement.of_layer(*from) != placement.of_layer(layer);
        if let Some(from) = spec.shares.filter(apart) {
            return Err(ModelError::Split {
                expected: format!("layer {layer} on the device of layer {from}, whose keys and values it reads"),
                got: "another device".to_owned(),
            });
        }
    }
    Ok(())
}
