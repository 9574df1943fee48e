//! What a decoder remembers of a sequence: keys and values by layer, one row a position, and whatever else its layers
//! carry along.
//!
//! Layers with a sliding window keep a ring of rows as long as the window and one step's tokens, instead of the whole
//! context. Recurrent layers keep states of a fixed size, which cannot be taken back to an earlier position.

use std::sync::Arc;

use bayan_gpu::{Gpu, GpuError};
use bayan_tensor::ops::{CacheElement, CacheRows};
use bayan_tensor::{Dtype, State};

use crate::load::Placement;

/// What the numbers of keys and values are.
pub type CacheFormat = CacheElement;

/// How large a cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Sequences that it holds at a time.
    pub sequences: usize,
    /// Positions of each.
    pub context: usize,
    /// Element format.
    pub format: CacheFormat,
    /// Tokens of one sequence in one step, at most; `None`: as many as the context, and no layer keeps less than all
    /// positions.
    pub step: Option<usize>,
}

/// What one layer needs remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerNeeds {
    /// K d, the width of a row of keys; 0: no attention.
    pub width: usize,
    /// Positions that a token sees, where they are limited.
    pub window: Option<usize>,
    /// Sizes of other states of a sequence, in f32; at position 0 a layer takes them as zeros.
    pub states: Vec<usize>,
}

impl LayerNeeds {
    /// Rows of a sequence: all positions, or a ring as long as the window and one step's tokens.
    fn rows(&self, shape: CacheShape) -> CacheRows {
        let ring = self.window.zip(shape.step).and_then(|(window, step)| window.checked_add(step));
        CacheRows { context: shape.context, ring: ring.filter(|&ring| ring < shape.context) }
    }

    /// Sizes of keys, and of values.
    fn sizes(&self, shape: CacheShape) -> [usize; 2] {
        match self.width {
            0 => [1, 4],
            width => [shape.sequences.saturating_mul(self.rows(shape).per_sequence()), shape.format.words(width)],
        }
    }

    /// Bytes of its keys, or of its values, in a cache of this shape: one binding, which cannot be split.
    pub fn binding_bytes(&self, shape: CacheShape) -> u64 {
        let [rows, words] = self.sizes(shape);
        4 * (rows as u64).saturating_mul(words as u64)
    }

    /// Bytes in a cache of this shape.
    pub fn size_bytes(&self, shape: CacheShape) -> u64 {
        let states = self.states.iter().map(|&size| 4 * (size as u64).saturating_mul(shape.sequences as u64));
        states.fold(self.binding_bytes(shape).saturating_mul(2), u64::saturating_add)
    }
}

/// The memory of one layer.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys, after rotation, [sequences · rows, K d] as [`CacheElement`] says.
    pub keys: Arc<State>,
    /// Values.
    pub values: Arc<State>,
    /// Which row a position has.
    pub rows: CacheRows,
    /// Other states, [sequences, size] each.
    pub states: Vec<Arc<State>>,
}

/// The whole cache.
#[derive(Debug)]
pub struct Cache {
    /// Its size.
    pub shape: CacheShape,
    layers: Vec<LayerCache>,
}

impl Cache {
    /// An empty cache for layers with these needs.
    ///
    /// # Errors
    /// Out of memory, or a format that does not fit a layer's width.
    pub fn new(gpu: Option<&Gpu>, shape: CacheShape, needs: &[LayerNeeds]) -> Result<Cache, GpuError> {
        let gpus: Vec<Gpu> = gpu.into_iter().cloned().collect();
        Cache::placed(&Placement { gpus: &gpus, ..Default::default() }, shape, needs)
    }

    /// As [`Cache::new`], each layer where its weights are.
    ///
    /// # Errors
    /// As [`Cache::new`].
    pub fn placed(placement: &Placement<'_>, shape: CacheShape, needs: &[LayerNeeds]) -> Result<Cache, GpuError> {
        let of = |(index, layer)| layer_cache(placement.gpu(placement.of_layer(index)), shape, layer);
        let layers = needs.iter().enumerate().map(of).collect::<Result<_, GpuError>>()?;
        Ok(Cache { shape, layers })
    }

    /// Layer by layer.
    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }

    /// Bytes of all layers.
    pub fn size_bytes(&self) -> u64 {
        let states = self.layers.iter().flat_map(|layer| [&layer.keys, &layer.values].into_iter().chain(&layer.states));
        states.map(|state| state.size_bytes()).sum()
    }

    /// Whether a sequence that has `length` positions in the cache can be continued after the first `kept` of them, the
    /// others forgotten: recurrent states cannot be taken back, and a ring may have overwritten what the next token
    /// sees.
    pub fn can_return(&self, length: usize, kept: usize) -> bool {
        let layer = |layer: &LayerCache| {
            let recurrent = !layer.states.is_empty() && kept != length && kept > 0;
            // A ring is as long as the window and one step's tokens.
            let step = self.shape.step.unwrap_or(0);
            let overwritten =
                layer.rows.ring.is_some_and(|ring| length > ring && kept > 0 && length.saturating_sub(kept) > step);
            !recurrent && !overwritten
        };
        self.layers.iter().all(layer)
    }

    /// Whether a layer carries a state that cannot be taken back.
    pub fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|layer| !layer.states.is_empty())
    }
}

fn layer_cache(gpu: Option<&Gpu>, shape: CacheShape, needs: &LayerNeeds) -> Result<LayerCache, GpuError> {
    let CacheShape { sequences, format, .. } = shape;
    if !format.fits(needs.width) {
        let (name, width) = (format.name(), needs.width);
        return Err(GpuError::Validation(format!(
            "a key-value cache in {name} needs rows of a multiple of 32 numbers, this model has {width}; use f16"
        )));
    }
    let rows = needs.rows(shape);
    let dtype = if needs.width == 0 { Dtype::F32 } else { format.dtype() };
    let make = |label| State::zeros(gpu, label, &needs.sizes(shape), dtype);
    let states = needs.states.iter().map(|&size| State::zeros(gpu, "layer state", &[sequences, size], Dtype::F32));
    Ok(LayerCache {
        keys: make("key cache")?,
        values: make("value cache")?,
        rows,
        states: states.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(step: Option<usize>, needs: LayerNeeds) -> Cache {
        let shape = CacheShape { sequences: 2, context: 1000, format: CacheFormat::Q8_0, step };
        Cache::new(None, shape, &[needs]).unwrap()
    }

    #[test]
    fn windows_keep_a_ring_and_whole_contexts_everything() {
        let windowed = || LayerNeeds { width: 64, window: Some(100), ..Default::default() };
        assert_eq!(cache(Some(28), windowed()).size_bytes(), 2 * 2 * 128 * 4 * (16 + 2));
        assert_eq!(cache(None, windowed()).size_bytes(), 2 * 2 * 1000 * 4 * (16 + 2));
        assert_eq!(cache(Some(950), windowed()).size_bytes(), 2 * 2 * 1000 * 4 * (16 + 2));
        assert!(cache(None, windowed()).can_return(900, 3));
    }

    #[test]
    fn what_was_overwritten_cannot_be_returned_to() {
        let ring = cache(Some(28), LayerNeeds { width: 64, window: Some(100), ..Default::default() });
        assert!(ring.can_return(500, 500) && ring.can_return(500, 472) && !ring.can_return(500, 471));
        assert!(ring.can_return(500, 0) && ring.can_return(128, 1));
        let recurrent = cache(None, LayerNeeds { width: 64, states: vec![7], ..Default::default() });
        assert!(
            recurrent.is_recurrent()
                && recurrent.can_return(9, 9)
                && recurrent.can_return(9, 0)
                && !recurrent.can_return(9, 8)
        );
    }

    #[test]
    fn a_width_that_does_not_fit_is_an_error() {
        let shape = CacheShape { sequences: 1, context: 8, format: CacheFormat::Q4_0, step: None };
        let error = Cache::new(None, shape, &[LayerNeeds { width: 40, ..Default::default() }]).unwrap_err();
        assert!(error.to_string().contains("multiple of 32"), "{error}");
    }
}
