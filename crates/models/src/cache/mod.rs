//! The state of sequences between steps: the keys and values of every layer, one row per position, and the other states
//! of its layers. Rows follow each other, or are in blocks that a table gives to sequences ([`Blocks`]).
//!
//! Layers with a sliding window store a ring of as many rows as the window and the tokens of one step, instead of the
//! whole context. Recurrent layers store states of fixed size, which cannot be reset to an earlier position.

mod blocks;

use std::ops::Range;
use std::slice::from_ref;
use std::sync::Arc;

use bayan_gpu::{Gpu, GpuError};
use bayan_tensor::ops::{CacheElement, CacheRows};
use bayan_tensor::{Dtype, Move, State, StateRange, copy_within};
use blocks::BlockCopy;
pub use blocks::{BLOCK, Blocks};

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
    /// Positions that all sequences together can have, in whole blocks. `None`: each sequence has rows for its whole
    /// context, which follow each other.
    pub positions: Option<usize>,
}

impl CacheShape {
    /// Number of blocks, if there are any. A whole context fits in any case.
    fn blocks(self) -> Option<usize> {
        self.positions.map(|positions| positions.max(self.context).div_ceil(BLOCK))
    }

    /// The positions with which every sequence can have its whole context.
    pub fn all_positions(self) -> usize {
        self.sequences.saturating_mul(self.context.next_multiple_of(BLOCK))
    }
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
        let ring = ring.filter(|&ring| ring < shape.context);
        let block = shape.positions.map(|_| BLOCK).filter(|_| ring.is_none());
        CacheRows { context: shape.context, ring, block }
    }

    /// Number of rows of all sequences; with blocks, those of the block that nobody has as well.
    fn row_count(&self, shape: CacheShape) -> usize {
        let rows = self.rows(shape);
        match shape.blocks().filter(|_| rows.block.is_some()) {
            Some(blocks) => blocks.saturating_add(1).saturating_mul(BLOCK),
            None => shape.sequences.saturating_mul(rows.per_sequence()),
        }
    }

    /// Rows and words per row of the keys; the values have the same.
    fn sizes(&self, shape: CacheShape) -> [usize; 2] {
        match self.width {
            _ if self.shares.is_some() => [0, 0],
            0 => [1, 4],
            width => [self.row_count(shape), shape.format.words(width)],
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
    /// The elements that hold these rows of keys and values; none if the layer has none of its own.
    fn row_ranges(&self, format: CacheFormat, rows: &[Range<usize>]) -> Vec<StateRange<'_>> {
        let mut ranges = Vec::new();
        if self.width == 0 {
            return ranges;
        }
        for state in [&self.keys, &self.values] {
            for (start, words) in format.parts(state.shape()[0], self.width) {
                let range = |rows: &Range<usize>| StateRange {
                    state,
                    from: start + rows.start * words,
                    len: rows.len() * words,
                };
                ranges.extend(rows.iter().map(range));
            }
        }
        ranges
    }

    /// The elements that hold the first `positions` positions of a sequence with these blocks: of a ring all rows, of
    /// other states everything.
    fn ranges(&self, format: CacheFormat, sequence: usize, blocks: &[u32], positions: usize) -> Vec<StateRange<'_>> {
        let mut ranges = match self.rows {
            CacheRows { block: Some(_), .. } => self.row_ranges(format, &block_rows(blocks, positions)),
            CacheRows { ring, .. } => {
                let first = sequence * self.rows.per_sequence();
                self.row_ranges(format, from_ref(&(first..first + ring.unwrap_or(positions))))
            }
        };
        ranges.extend(self.state_ranges(sequence));
        ranges
    }

    /// The elements of a sequence's other states.
    fn state_ranges(&self, sequence: usize) -> impl Iterator<Item = StateRange<'_>> {
        self.states.iter().map(move |state| StateRange {
            state,
            from: sequence * state.shape()[1],
            len: state.shape()[1],
        })
    }

    /// What is copied when a sequence begins as another one: the rows of a block, a ring, and the other states.
    fn share_moves(&self, format: CacheFormat, from: usize, to: usize, copy: Option<BlockCopy>) -> Vec<Move<'_>> {
        let mut moves = self.block_moves(format, copy);
        if self.rows.block.is_none() {
            let ring = self.rows.per_sequence();
            let rows = |sequence: usize| sequence * ring..(sequence + 1) * ring;
            let [sources, places] = [from, to].map(|sequence| self.row_ranges(format, from_ref(&rows(sequence))));
            moves.extend(moves_between(sources, places));
        }
        moves.extend(moves_between(self.state_ranges(from), self.state_ranges(to)));
        moves
    }

    /// The copy of a block's rows.
    fn block_moves(&self, format: CacheFormat, copy: Option<BlockCopy>) -> Vec<Move<'_>> {
        let Some(BlockCopy { from, to, rows }) = copy.filter(|_| self.rows.block.is_some()) else { return Vec::new() };
        let rows_of = |block: u32| block as usize * BLOCK..block as usize * BLOCK + rows;
        let [sources, places] = [from, to].map(|block| self.row_ranges(format, from_ref(&rows_of(block))));
        moves_between(sources, places).collect()
    }
}

/// Copies of ranges to other places of the same states.
fn moves_between<'a>(
    sources: impl IntoIterator<Item = StateRange<'a>>,
    places: impl IntoIterator<Item = StateRange<'a>>,
) -> impl Iterator<Item = Move<'a>> {
    let pairs = sources.into_iter().zip(places);
    pairs.map(|(StateRange { state, from, len }, place)| Move { state, from, to: place.from, len })
}

/// The rows of the first positions of a sequence with these blocks; blocks that follow each other are one range.
fn block_rows(blocks: &[u32], positions: usize) -> Vec<Range<usize>> {
    let mut rows: Vec<Range<usize>> = Vec::new();
    for (number, &block) in blocks.iter().enumerate().take(positions.div_ceil(BLOCK)) {
        let start = block as usize * BLOCK;
        let end = start + BLOCK.min(positions - number * BLOCK);
        match rows.last_mut().filter(|last| last.end == start) {
            Some(last) => last.end = end,
            None => rows.push(start..end),
        }
    }
    rows
}

/// The cache of all layers.
#[derive(Debug)]
pub struct Cache {
    /// The cache's size.
    pub shape: CacheShape,
    layers: Vec<LayerCache>,
    /// Which sequence has which blocks; without blocks there are none to give.
    blocks: Blocks,
}

impl Cache {
    /// An empty cache for layers that store this.
    ///
    /// # Errors
    /// Out of memory, more keys in one layer than the device can bind, or a format that does not fit a layer's width.
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
        let blocks = Blocks::new(shape.blocks().unwrap_or(0), shape.sequences, shape.context);
        Ok(Cache { shape, layers, blocks })
    }

    /// The table that follows the bases of a step's tokens ([`CacheRows::with_table`]); empty without blocks.
    pub fn table(&self) -> Vec<u32> {
        if self.shape.positions.is_some() { self.blocks.words() } else { Vec::new() }
    }

    /// Number of words of [`Cache::table`].
    pub fn table_len(&self) -> usize {
        self.shape.positions.map_or(0, |_| self.shape.sequences * self.shape.context.div_ceil(BLOCK))
    }

    /// Which sequence has which blocks.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Gives and takes blocks.
    pub fn blocks_mut(&mut self) -> &mut Blocks {
        &mut self.blocks
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

    /// Lets a sequence begin with the first `positions` positions of another one, on the devices of the layers: whole
    /// blocks are shared, the rest of a block is copied. Of a ring, and of recurrent states, everything is copied: the
    /// sequence must be one that can continue there ([`Cache::can_rewind`]). Returns whether there was a block for the
    /// copy; without, nothing changes.
    ///
    /// # Errors
    /// The device's memory is exhausted.
    pub fn share_prefix(&mut self, gpus: &[Gpu], from: usize, to: usize, positions: usize) -> Result<bool, GpuError> {
        let Ok(copy) = self.blocks.share(from, to, positions) else { return Ok(false) };
        let format = self.shape.format;
        let moves: Vec<Move<'_>> =
            self.layers.iter().flat_map(|layer| layer.share_moves(format, from, to, copy)).collect();
        copy_within(gpus, &moves)?;
        Ok(true)
    }

    /// Prepares a sequence to go on behind its first `positions` positions, and returns how many of them are left: fewer
    /// if a block was missing for a copy of the last one.
    ///
    /// # Errors
    /// The device's memory is exhausted.
    pub fn rewind(&mut self, gpus: &[Gpu], sequence: usize, positions: usize) -> Result<usize, GpuError> {
        let (left, copy) = self.blocks.rewind(sequence, positions);
        let moves: Vec<Move<'_>> =
            self.layers.iter().flat_map(|layer| layer.block_moves(self.shape.format, copy)).collect();
        copy_within(gpus, &moves)?;
        Ok(left)
    }

    /// The elements that hold the first `positions` positions of a sequence, layer by layer: of a ring, and of recurrent
    /// states, everything.
    pub fn ranges(&self, sequence: usize, positions: usize) -> Vec<StateRange<'_>> {
        let blocks = self.blocks.of(sequence);
        self.layers.iter().flat_map(|layer| layer.ranges(self.shape.format, sequence, blocks, positions)).collect()
    }

    /// Bytes of what [`Cache::ranges`] gives for so many positions.
    pub fn prefix_bytes(&self, positions: usize) -> usize {
        let blocks: Vec<u32> = (0..positions.div_ceil(BLOCK) as u32).collect();
        let ranges = self.layers.iter().flat_map(|layer| layer.ranges(self.shape.format, 0, &blocks, positions));
        ranges.map(|range| range.size_bytes()).sum()
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
    let (size_bytes, limit) = (spec.binding_bytes(shape), gpu.map(|gpu| gpu.capabilities().max_binding_bytes));
    if let Some(limit_bytes) = limit.filter(|&limit| limit < size_bytes) {
        let what = "the keys of one layer in the cache".to_string();
        return Err(GpuError::TooLarge { what, kind: "binding", size_bytes, limit_bytes });
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
        let shape = CacheShape { sequences: 2, context: 1000, format: CacheFormat::Q8_0, step, positions: None };
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
        let shape = CacheShape { sequences: 2, context: 1000, format: CacheFormat::F16, step: None, positions: None };
        let own = LayerCacheSpec { width: 64, ..Default::default() };
        let shared = LayerCacheSpec { shares: Some(0), ..own.clone() };
        let alone = Cache::new(None, shape, std::slice::from_ref(&own)).unwrap();
        let both = Cache::new(None, shape, &[own, shared.clone()]).unwrap();
        assert!(Arc::ptr_eq(&both.layers()[0].keys, &both.layers()[1].keys));
        assert_eq!((both.size_bytes(), shared.size_bytes(shape)), (alone.size_bytes(), 0));
    }

    #[test]
    fn blocks_take_memory_for_the_positions_of_all_sequences() {
        let shape =
            CacheShape { sequences: 5, context: 1000, format: CacheFormat::F16, step: Some(28), positions: Some(1500) };
        let whole = LayerCacheSpec { width: 64, ..Default::default() };
        assert_eq!(whole.binding_bytes(shape), (24 + 1) * BLOCK as u64 * 32 * 4);
        let windowed = LayerCacheSpec { window: Some(100), ..whole.clone() };
        assert_eq!(windowed.binding_bytes(shape), 5 * 128 * 32 * 4, "a ring for each sequence");
        let least = CacheShape { positions: Some(1), ..shape };
        assert_eq!(whole.binding_bytes(least), (16 + 1) * BLOCK as u64 * 32 * 4, "a context fits in any case");
        let mut cache = Cache::new(None, shape, &[whole, windowed]).unwrap();
        assert_eq!((cache.table().len(), cache.table_len(), cache.blocks().load()), (80, 80, (24, 24)));
        assert!(cache.blocks_mut().reserve(1, 70) && cache.blocks_mut().reserve(0, 70));
        assert!(cache.blocks_mut().reserve(1, 130));
        assert_eq!(block_rows(cache.blocks().of(1), 150), [64..192, 320..342]);
    }

    #[test]
    fn a_width_that_does_not_fit_is_an_error() {
        let shape = CacheShape { sequences: 1, context: 8, format: CacheFormat::Q4_0, step: None, positions: None };
        let error = Cache::new(None, shape, &[LayerCacheSpec { width: 40, ..Default::default() }]).unwrap_err();
        assert!(error.to_string().contains("multiple of 32"), "{error}");
    }
}
