//! The state of sequences between steps: the keys and values of every layer, one row per position, and the other states
//! of its layers.
//!
//! Layers with a sliding window store a ring of as many rows as the window and the tokens of one step, instead of the
//! whole context. Recurrent layers store states of fixed size, which cannot be reset to an earlier position.

use std::sync::Arc;

use bayan_gpu::{Gpu, GpuError};
use bayan_tensor::ops::{CacheElement, CacheRows};
use bayan_tensor::{Dtype, Move, State, StateRange, copy_within};

use crate::load::Placement;

/// Element format of keys and values.
pub type CacheFormat = CacheElement;

/// The size of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Number of sequences that the cache holds at a time.
    pub sequences: usize,
    /// Positions per sequence.
    pub context: usize,
    /// Element format.
    pub format: CacheFormat,
    /// Largest number of tokens of one sequence in one step. `None`: as many as the context; then every layer stores
    /// all positions.
    pub step: Option<usize>,
}

/// What one layer stores in the cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerCacheSpec {
    /// K d, the width of a row of keys; 0 if the layer has no attention.
    pub width: usize,
    /// Number of positions that a token attends to, if it is limited.
    pub window: Option<usize>,
    /// Sizes of the other states of a sequence, in f32. At position 0 a layer treats them as zeros.
    pub states: Vec<usize>,
    /// An earlier layer whose keys and values this one reads, instead of storing its own.
    pub shares: Option<usize>,
}

impl LayerCacheSpec {
    /// How positions map to rows: one row each, or a ring of as many rows as the window and the tokens of one step.
    fn rows(&self, shape: CacheShape) -> CacheRows {
        let ring = self.window.zip(shape.step).and_then(|(window, step)| window.checked_add(step));
        CacheRows { context: shape.context, ring: ring.filter(|&ring| ring < shape.context) }
    }

    /// Rows and words per row of the keys; the values have the same.
    fn sizes(&self, shape: CacheShape) -> [usize; 2] {
        match self.width {
            _ if self.shares.is_some() => [0, 0],
            0 => [1, 4],
            width => [shape.sequences.saturating_mul(self.rows(shape).per_sequence()), shape.format.words(width)],
        }
    }

    /// Bytes of the layer's keys, which equals that of its values, in a cache of this shape: one binding, which cannot
    /// be split.
    pub fn binding_bytes(&self, shape: CacheShape) -> u64 {
        let [rows, words] = self.sizes(shape);
        4 * (rows as u64).saturating_mul(words as u64)
    }

    /// Bytes of the layer in a cache of this shape.
    pub fn size_bytes(&self, shape: CacheShape) -> u64 {
        let states = self.states.iter().map(|&size| 4 * (size as u64).saturating_mul(shape.sequences as u64));
        states.fold(self.binding_bytes(shape).saturating_mul(2), u64::saturating_add)
    }
}

/// The cache of one layer.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys after the rotation, [sequences · rows, K d], in the element format of [`CacheElement`].
    pub keys: Arc<State>,
    /// Values, in the same form.
    pub values: Arc<State>,
    /// Maps positions to rows.
    pub rows: CacheRows,
    /// The other states, [sequences, size] each.
    pub states: Vec<Arc<State>>,
    /// K d, the width of a row; 0 if the layer has no attention, or another layer's keys and values.
    width: usize,
    /// Whether keys and values are those of an earlier layer.
    pub shared: bool,
}

impl LayerCache {
    /// The elements that hold the first `positions` positions of a sequence: of a ring all rows, of other states
    /// everything.
    fn ranges(&self, shape: CacheShape, sequence: usize, positions: usize) -> Vec<StateRange<'_>> {
        let rows = self.rows.per_sequence();
        let held = if self.rows.ring.is_some() { rows } else { positions };
        let mut ranges = Vec::new();
        if self.width > 0 {
            let parts = shape.format.parts(shape.sequences * rows, self.width);
            for (state, (start, words)) in
                [&self.keys, &self.values].into_iter().flat_map(|s| parts.iter().map(move |p| (s, *p)))
            {
                ranges.push(StateRange { state, from: start + sequence * rows * words, len: held * words });
            }
        }
        for state in &self.states {
            let len = state.shape()[1];
            ranges.push(StateRange { state, from: sequence * len, len });
        }
        ranges
    }

    /// The ranges that [`Cache::copy_prefix`] copies.
    fn moves(&self, shape: CacheShape, from: usize, to: usize, positions: usize) -> Vec<Move<'_>> {
        let sources = self.ranges(shape, from, positions);
        let places = self.ranges(shape, to, positions).into_iter().map(|range| range.from);
        let pairs = sources.into_iter().zip(places);
        pairs.map(|(StateRange { state, from, len }, to)| Move { state, from, to, len }).collect()
    }
}

/// The cache of all layers.
#[derive(Debug)]
pub struct Cache {
    /// The cache's size.
    pub shape: CacheShape,
    layers: Vec<LayerCache>,
}

impl Cache {
    /// An empty cache for layers that store this.
    ///
    /// # Errors
    /// Out of memory, or a format that does not fit a layer's width.
    pub fn new(gpu: Option<&Gpu>, shape: CacheShape, specs: &[LayerCacheSpec]) -> Result<Cache, GpuError> {
        let gpus: Vec<Gpu> = gpu.into_iter().cloned().collect();
        Cache::placed(&Placement { gpus: &gpus, ..Default::default() }, shape, specs)
    }

    /// As [`Cache::new`], with each layer on the device of its weights.
    ///
    /// # Errors
    /// As [`Cache::new`].
    pub fn placed(placement: &Placement<'_>, shape: CacheShape, specs: &[LayerCacheSpec]) -> Result<Cache, GpuError> {
        let mut layers: Vec<LayerCache> = Vec::with_capacity(specs.len());
        for (index, spec) in specs.iter().enumerate() {
            let gpu = placement.gpu(placement.of_layer(index));
            let layer = match spec.shares.and_then(|from| layers.get(from)) {
                Some(from) => LayerCache {
                    keys: from.keys.clone(),
                    values: from.values.clone(),
                    rows: from.rows,
                    width: 0,
                    states: layer_states(gpu, shape, spec)?,
                    shared: true,
                },
                None => layer_cache(gpu, shape, spec)?,
            };
            layers.push(layer);
        }
        Ok(Cache { shape, layers })
    }

    /// The caches of the layers, in order.
    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }

    /// Bytes of all layers.
    pub fn size_bytes(&self) -> u64 {
        let states = self.layers.iter().flat_map(|layer| {
            let own = [&layer.keys, &layer.values].into_iter().filter(|_| !layer.shared);
            own.chain(&layer.states)
        });
        states.map(|state| state.size_bytes()).sum()
    }

    /// Whether a sequence with `length` positions in the cache can continue after only its first `kept` positions.
    /// Recurrent states cannot be reset, and a ring may have overwritten positions that the next token attends to.
    pub fn can_rewind(&self, length: usize, kept: usize) -> bool {
        let layer = |layer: &LayerCache| {
            let recurrent = !layer.states.is_empty() && kept != length && kept > 0;
            // A ring has as many rows as the window and the tokens of one step.
            let step = self.shape.step.unwrap_or(0);
            let overwritten =
                layer.rows.ring.is_some_and(|ring| length > ring && kept > 0 && length.saturating_sub(kept) > step);
            !recurrent && !overwritten
        };
        self.layers.iter().all(layer)
    }

    /// Copies the first `positions` positions of a sequence to another one, on the devices of the layers. Of a ring,
    /// and of recurrent states, everything is copied: the sequence must be one that can continue there
    /// ([`Cache::can_rewind`]).
    ///
    /// # Errors
    /// The device's memory is exhausted.
    pub fn copy_prefix(&self, gpus: &[Gpu], from: usize, to: usize, positions: usize) -> Result<(), GpuError> {
        let moves: Vec<Move<'_>> =
            self.layers.iter().flat_map(|layer| layer.moves(self.shape, from, to, positions)).collect();
        copy_within(gpus, &moves)
    }

    /// The elements that hold the first `positions` positions of a sequence, layer by layer: of a ring, and of recurrent
    /// states, everything.
    pub fn ranges(&self, sequence: usize, positions: usize) -> Vec<StateRange<'_>> {
        self.layers.iter().flat_map(|layer| layer.ranges(self.shape, sequence, positions)).collect()
    }

    /// The rows of each layer's ring (0: a row for every position), the width of its rows, and the sizes of its other
    /// states. Caches of equal layouts and formats store a sequence in the same bytes.
    pub fn layout(&self) -> Vec<Vec<usize>> {
        let layer = |layer: &LayerCache| {
            let states = layer.states.iter().map(|state| state.shape()[1]);
            [layer.rows.ring.unwrap_or(0), layer.width].into_iter().chain(states).collect()
        };
        self.layers.iter().map(layer).collect()
    }

    /// Whether any layer has a recurrent state, which cannot be reset to an earlier position.
    pub fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|layer| !layer.states.is_empty())
    }
}

fn layer_cache(gpu: Option<&Gpu>, shape: CacheShape, spec: &LayerCacheSpec) -> Result<LayerCache, GpuError> {
    let CacheShape { format, .. } = shape;
    if !format.fits(spec.width) {
        let (name, width) = (format.name(), spec.width);
        return Err(GpuError::Validation(format!(
            "a key-value cache in {name} needs rows of a multiple of 32 numbers, this model has {width}; use f16"
        )));
    }
    let rows = spec.rows(shape);
    let dtype = if spec.width == 0 { Dtype::F32 } else { format.dtype() };
    let make = |label| State::zeros(gpu, label, &spec.sizes(shape), dtype);
    Ok(LayerCache {
        keys: make("key cache")?,
        values: make("value cache")?,
        rows,
        width: spec.width,
        states: layer_states(gpu, shape, spec)?,
        shared: false,
    })
}

fn layer_states(gpu: Option<&Gpu>, shape: CacheShape, spec: &LayerCacheSpec) -> Result<Vec<Arc<State>>, GpuError> {
    let states = spec.states.iter();
    states.map(|&size| State::zeros(gpu, "layer state", &[shape.sequences, size], Dtype::F32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(step: Option<usize>, spec: LayerCacheSpec) -> Cache {
        let shape = CacheShape { sequences: 2, context: 1000, format: CacheFormat::Q8_0, step };
        Cache::new(None, shape, &[spec]).unwrap()
    }

    #[test]
    fn windows_keep_a_ring_and_whole_contexts_everything() {
        let windowed = || LayerCacheSpec { width: 64, window: Some(100), ..Default::default() };
        assert_eq!(cache(Some(28), windowed()).size_bytes(), 2 * 2 * 128 * 4 * (16 + 2));
        assert_eq!(cache(None, windowed()).size_bytes(), 2 * 2 * 1000 * 4 * (16 + 2));
        assert_eq!(cache(Some(950), windowed()).size_bytes(), 2 * 2 * 1000 * 4 * (16 + 2));
        assert!(cache(None, windowed()).can_rewind(900, 3));
    }

    #[test]
    fn what_was_overwritten_cannot_be_returned_to() {
        let ring = cache(Some(28), LayerCacheSpec { width: 64, window: Some(100), ..Default::default() });
        assert!(ring.can_rewind(500, 500) && ring.can_rewind(500, 472) && !ring.can_rewind(500, 471));
        assert!(ring.can_rewind(500, 0) && ring.can_rewind(128, 1));
        let recurrent = cache(None, LayerCacheSpec { width: 64, states: vec![7], ..Default::default() });
        assert!(
            recurrent.is_recurrent()
                && recurrent.can_rewind(9, 9)
                && recurrent.can_rewind(9, 0)
                && !recurrent.can_rewind(9, 8)
        );
    }

    #[test]
    fn layers_that_share_keys_store_none() {
        let shape = CacheShape { sequences: 2, context: 1000, format: CacheFormat::F16, step: None };
        let own = LayerCacheSpec { width: 64, ..Default::default() };
        let shared = LayerCacheSpec { shares: Some(0), ..own.clone() };
        let alone = Cache::new(None, shape, std::slice::from_ref(&own)).unwrap();
        let both = Cache::new(None, shape, &[own, shared.clone()]).unwrap();
        assert!(Arc::ptr_eq(&both.layers()[0].keys, &both.layers()[1].keys));
        assert_eq!((both.size_bytes(), shared.size_bytes(shape)), (alone.size_bytes(), 0));
    }

    #[test]
    fn a_width_that_does_not_fit_is_an_error() {
        let shape = CacheShape { sequences: 1, context: 8, format: CacheFormat::Q4_0, step: None };
        let error = Cache::new(None, shape, &[LayerCacheSpec { width: 40, ..Default::default() }]).unwrap_err();
        assert!(error.to_string().contains("multiple of 32"), "{error}");
    }
}
