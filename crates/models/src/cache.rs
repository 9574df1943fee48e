//! The key-value cache: for every layer, one row a position for each of a number of sequences.

use std::sync::Arc;

use bayan_gpu::{Gpu, GpuError};
use bayan_tensor::{Dtype, State};

/// What the cache's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheFormat {
    /// 4 bytes.
    F32,
    /// 2 bytes, two in each u32.
    F16,
}

/// How large a cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Sequences that it holds at a time.
    pub sequences: usize,
    /// Positions of each.
    pub context: usize,
    /// Element format.
    pub format: CacheFormat,
}

/// Keys and values of one layer, [sequences · context, K d].
#[derive(Debug)]
pub struct LayerCache {
    /// Keys, after rotation.
    pub keys: Arc<State>,
    /// Values.
    pub values: Arc<State>,
}

/// The whole cache.
#[derive(Debug)]
pub struct Cache {
    /// Its size.
    pub shape: CacheShape,
    layers: Vec<LayerCache>,
}

impl Cache {
    /// An empty cache; `widths` has K d of each layer.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(gpu: Option<&Gpu>, shape: CacheShape, widths: &[usize]) -> Result<Cache, GpuError> {
        let rows = shape.sequences * shape.context;
        let layer = |&width: &usize| {
            let make = |label| match shape.format {
                CacheFormat::F32 => State::zeros(gpu, label, &[rows, width], Dtype::F32),
                CacheFormat::F16 => State::zeros(gpu, label, &[rows, width / 2], Dtype::U32),
            };
            Ok(LayerCache { keys: make("key cache")?, values: make("value cache")? })
        };
        Ok(Cache { shape, layers: widths.iter().map(layer).collect::<Result<_, GpuError>>()? })
    }

    /// Layer by layer.
    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }

    /// Bytes of all layers.
    pub fn size_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.keys.size_bytes() + layer.values.size_bytes()).sum()
    }
}
