//! The memory of a model on a device, computed from its headers and the flags.

use crate::support::options::ModelArgs;
use bayan_generate::engine::cache_shape;
use bayan_gpu::Capabilities;
use bayan_models::{CacheShape, Sizes};
use bayan_weights::{Checkpoint, Format, Policy, TensorEntry, format_by_name};

/// The memory of a model on a device.
pub struct Memory {
    /// Positions of one sequence.
    pub context: usize,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Bytes of the key-value cache of one sequence.
    pub cache_bytes: u64,
    /// The largest plane of a matrix: one binding, unless it is split.
    pub largest_binding_bytes: u64,
    /// Keys, or values, of one layer: one binding, which cannot be split.
    pub cache_binding_bytes: u64,
}

/// The format in which a tensor is loaded onto the device; vectors are f32 there.
pub fn loaded_format(tensor: &TensorEntry, policy: Option<&Policy>) -> Option<&'static dyn Format> {
    if tensor.shape.len() != 2 {
        return format_by_name("f32");
    }
    Some(tensor.loaded_format(policy))
}

/// Computes the memory of a model on a device.
pub fn memory(checkpoint: &Checkpoint, sizes: &Sizes, args: &ModelArgs, device: Option<&Capabilities>) -> Memory {
    let context = args
        .context
        .map_or_else(|| sizes.max_position_embeddings.min(bayan_generate::engine::DEFAULT_CONTEXT), |n| n as usize)
        .max(2);
    let policy = args.quantize.map(Policy::for_format);
    let (mut weight_bytes, mut largest_binding_bytes) = (0, 0);
    for tensor in checkpoint.tensors() {
        let Some(format) = loaded_format(tensor, policy.as_ref()) else { continue };
        for plane in 0..format.planes().len() {
            let bytes = format.row_bytes(plane, tensor.k().next_multiple_of(32)).saturating_mul(tensor.rows() as u64);
            weight_bytes += bytes;
            largest_binding_bytes = largest_binding_bytes.max(bytes);
        }
    }
    let specs = bayan_models::cache_specs(checkpoint).unwrap_or_default();
    // Without a device, the size of layers without ring buffers.
    let shape = match device {
        Some(device) => cache_shape(context, args.cache.format(), device),
        None => CacheShape { sequences: 1, context, format: args.cache.format(), step: None, positions: Some(context) },
    };
    let cache_bytes = specs.iter().map(|layer| layer.size_bytes(shape)).fold(0, u64::saturating_add);
    let cache_binding_bytes = specs.iter().map(|layer| layer.binding_bytes(shape)).max().unwrap_or(0);
    Memory { context, weight_bytes, cache_bytes, largest_binding_bytes, cache_binding_bytes }
}
