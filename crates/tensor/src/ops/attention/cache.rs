//! Element formats of a key-value cache, and the number of u32 words that a row takes in each.
//!
//! When an op is recorded, the width of the cache's rows determines the element format, so that models need not state
//! it.

use bayan_gpu::shader::Defines;

use crate::graph::{Dtype, Values, pack_f16, unpack_f16};

/// The row of a position, for all kernels that read or write a cache.
pub(super) const ROW: &str = wgsl!("lib/cache_row.wgsl");

/// Number of values that share a scale.
const BLOCK: usize = 32;

/// An element format. Quantized rows have a width K d that is a multiple of 32. In memory all codes of the cache come
/// first, then all scales (f32).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum CacheElement {
    /// 4 bytes per value.
    #[default]
    F32,
    /// 2 bytes per value, two values in each u32.
    F16,
    /// One byte per value, and a scale for every 32 values.
    Q8_0,
    /// Half a byte per value, and a scale for every 32 values.
    Q4_0,
}

impl CacheElement {
    /// Every format.
    pub const ALL: [CacheElement; 4] = [CacheElement::F32, CacheElement::F16, CacheElement::Q8_0, CacheElement::Q4_0];

    /// The name that users and shaders use.
    pub fn name(self) -> &'static str {
        match self {
            CacheElement::F32 => "f32",
            CacheElement::F16 => "f16",
            CacheElement::Q8_0 => "q8_0",
            CacheElement::Q4_0 => "q4_0",
        }
    }

    /// Whether rows of `width` values can be stored in this format.
    pub fn fits(self, width: usize) -> bool {
        match self {
            CacheElement::F32 => true,
            CacheElement::F16 => width.is_multiple_of(2),
            CacheElement::Q8_0 | CacheElement::Q4_0 => width.is_multiple_of(BLOCK),
        }
    }

    /// Number of 4-byte words in a row of `width` values.
    pub fn words(self, width: usize) -> usize {
        match self {
            CacheElement::F32 => width,
            CacheElement::F16 => width / 2,
            CacheElement::Q8_0 => width / 4 + width / BLOCK,
            CacheElement::Q4_0 => width / 8 + width / BLOCK,
        }
    }

    /// Element type of the cache's state.
    pub fn dtype(self) -> Dtype {
        if self == CacheElement::F32 { Dtype::F32 } else { Dtype::U32 }
    }

    /// Whether the format is quantized.
    pub fn is_quantized(self) -> bool {
        matches!(self, CacheElement::Q8_0 | CacheElement::Q4_0)
    }

    /// The format in which rows of `width` values take `words` 4-byte words.
    ///
    /// # Panics
    /// If there is none, which is a programming error in a model.
    pub fn of(words: usize, width: usize) -> CacheElement {
        let found = CacheElement::ALL.into_iter().find(|element| element.words(width) == words);
        found.unwrap_or_else(|| panic!("no cache format has {words} words for {width} numbers"))
    }

    /// The parts of a cache in which the words of consecutive rows follow each other: for each its first word, and its
    /// number of words of a row.
    pub fn parts(self, rows: usize, width: usize) -> Vec<(usize, usize)> {
        if !self.is_quantized() {
            return vec![(0, self.words(width))];
        }
        vec![(0, self.codes(1, width)), (self.codes(rows, width), width / BLOCK)]
    }

    /// Number of words of all codes; the scales follow them.
    fn codes(self, rows: usize, width: usize) -> usize {
        rows * if self == CacheElement::Q8_0 { width / 4 } else { width / 8 }
    }

    pub(crate) fn defines(self, defines: Defines, rows: usize, width: usize) -> Defines {
        let cache = match self {
            CacheElement::F32 => "vec4<f32>",
            CacheElement::F16 => "vec2<u32>",
            CacheElement::Q8_0 | CacheElement::Q4_0 => "u32",
        };
        defines.set("ELEMENT", self.name()).set("CACHE", cache).set("SCALES", self.codes(rows, width))
    }

    /// Writes one row of a cache.
    pub(crate) fn write(self, cache: &mut Values, row: usize, numbers: &[f32]) {
        let width = numbers.len();
        let rows = cache.len() / self.words(width);
        match self {
            CacheElement::F32 => cache.f32_mut()[row * width..(row + 1) * width].copy_from_slice(numbers),
            CacheElement::F16 => {
                let to = &mut cache.u32_mut()[row * width / 2..(row + 1) * width / 2];
                to.iter_mut().zip(numbers.chunks_exact(2)).for_each(|(y, v)| *y = pack_f16(v[0], v[1]));
            }
            CacheElement::Q8_0 | CacheElement::Q4_0 => {
                let (codes, scales) = cache.u32_mut().split_at_mut(self.codes(rows, width));
                let words = codes.len() / rows * BLOCK / width;
                for (index, block) in numbers.chunks_exact(BLOCK).enumerate() {
                    let at = row * width / BLOCK + index;
                    let scale = self.quantize(block, &mut codes[at * words..(at + 1) * words]);
                    scales[at] = scale.to_bits();
                }
            }
        }
    }

    /// Writes the codes of a block, and returns its scale.
    fn quantize(self, block: &[f32], codes: &mut [u32]) -> f32 {
        let steps = if self == CacheElement::Q8_0 { 127.0 } else { -8.0 };
        let peak = match self {
            CacheElement::Q8_0 => block.iter().fold(0f32, |m, v| m.max(v.abs())),
            _ => block.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m }),
        };
        let inverse = if peak == 0.0 { 0.0 } else { steps / peak };
        let rounded = block.iter().map(|v| (v * inverse).round_ties_even());
        if self == CacheElement::Q8_0 {
            let bytes: Vec<u8> = rounded.map(|v| v as i32 as u8).collect();
            codes
                .iter_mut()
                .zip(bytes.chunks_exact(4))
                .for_each(|(y, b)| *y = u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        } else {
            let nibbles: Vec<u32> = rounded.map(|v| (v + 8.0).clamp(0.0, 15.0) as u32).collect();
            codes
                .iter_mut()
                .zip(nibbles.chunks_exact(8))
                .for_each(|(y, n)| *y = n.iter().enumerate().fold(0, |word, (i, n)| word | n << (4 * i)));
        }
        peak / steps
    }

    /// `count` values of a quantized cache from each of these values on.
    pub(crate) fn read_parts(self, cache: &Values, width: usize, starts: &[usize], count: usize, out: &mut Vec<f32>) {
        let rows = cache.len() / self.words(width);
        let (codes, scales) = cache.u32().split_at(self.codes(rows, width));
        out.clear();
        for value in starts.iter().flat_map(|&start| start..start + count) {
            let scale = f32::from_bits(scales[value / BLOCK]);
            let code = match self {
                CacheElement::Q8_0 => (codes[value / 4] >> (value % 4 * 8)) as u8 as i8 as f32,
                _ => (codes[value / 8] >> (value % 8 * 4) & 15) as f32 - 8.0,
            };
            out.push(code * scale);
        }
    }

    /// All values of a cache whose rows have `width` values.
    pub(crate) fn read(self, cache: &Values, width: usize) -> Vec<f32> {
        let rows = cache.len() / self.words(width);
        match self {
            CacheElement::F32 => cache.f32().to_vec(),
            CacheElement::F16 => cache.u32().iter().flat_map(|&w| unpack_f16(w)).collect(),
            CacheElement::Q8_0 | CacheElement::Q4_0 => {
                let (codes, scales) = cache.u32().split_at(self.codes(rows, width));
                let words = codes.len() / scales.len().max(1);
                let block = |(at, scale): (usize, &u32)| {
                    let codes = &codes[at * words..(at + 1) * words];
                    let scale = f32::from_bits(*scale);
                    let numbers: Vec<f32> = match self {
                        CacheElement::Q8_0 => {
                            codes.iter().flat_map(|w| w.to_le_bytes()).map(|b| f32::from(b as i8) * scale).collect()
                        }
                        _ => codes
                            .iter()
                            .flat_map(|&w| (0..8).map(move |i| (w >> (4 * i)) & 15))
                            .map(|n| (n as f32 - 8.0) * scale)
                            .collect(),
                    };
                    numbers
                };
                scales.iter().enumerate().flat_map(block).collect()
            }
        }
    }
}

/// How a sequence's positions map to cache rows: one row for each position of the context; a ring of fewer rows, where a
/// window needs only as many as the window and the tokens of one step together; or rows in blocks, which a table gives
/// to sequences. The table follows the bases of a step's tokens in their tensor ([`CacheRows::with_table`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheRows {
    /// Positions per sequence; the base of each sequence is a multiple of it.
    pub context: usize,
    /// Number of rows in the ring, if there is one.
    pub ring: Option<usize>,
    /// Positions of a block, if rows are in blocks; a ring has none.
    pub block: Option<usize>,
}

impl CacheRows {
    /// A row for each position of each sequence.
    pub fn direct(context: usize) -> CacheRows {
        CacheRows { context, ring: None, block: None }
    }

    /// Number of rows of one sequence, without blocks.
    pub fn per_sequence(self) -> usize {
        self.ring.unwrap_or(self.context)
    }

    /// Number of blocks that the table has for each sequence.
    pub fn blocks_per_sequence(self) -> usize {
        self.block.map_or(0, |block| self.context.div_ceil(block))
    }

    /// The bases of a step's tokens with the table behind them; without a table, as they are. Kernels count from the end
    /// of a binding, which is a multiple of 4 words, so both parts are filled up to that.
    pub fn with_table(bases: &[u32], table: &[u32]) -> Vec<u32> {
        let mut words = bases.to_vec();
        if !table.is_empty() {
            words.resize(CacheRows::table_start(bases.len()), 0);
            words.extend_from_slice(table);
            words.resize(words.len().next_multiple_of(4), 0);
        }
        words
    }

    /// Where the table begins in the tensor of the bases of so many tokens.
    pub fn table_start(tokens: usize) -> usize {
        tokens.next_multiple_of(4)
    }

    /// Length of the tensor of the bases of so many tokens, with a table of so many words.
    pub fn bases_len(tokens: usize, table: usize) -> usize {
        if table == 0 { tokens } else { CacheRows::table_start(tokens) + table.next_multiple_of(4) }
    }

    /// Takes what [`CacheRows::with_table`] made apart.
    pub(crate) fn split_table(words: &[u32], tokens: usize) -> (&[u32], &[u32]) {
        (&words[..tokens], words.get(CacheRows::table_start(tokens)..).unwrap_or_default())
    }

    /// The names that `lib/cache_row.wgsl` reads, for a step of `tokens` tokens with bases of `bases` words.
    pub(crate) fn defines(self, defines: Defines, bases: usize, tokens: usize) -> Defines {
        defines
            .set("CONTEXT", self.context)
            .set("RING", self.ring.unwrap_or(0))
            .set("BLOCK", self.block.unwrap_or(0))
            .set("TABLE_PITCH", self.blocks_per_sequence())
            .set("TABLE", bases.saturating_sub(CacheRows::table_start(tokens)))
    }

    /// Number of positions from `position` on, itself included, whose rows follow each other.
    pub(crate) fn consecutive(self, position: usize) -> usize {
        match self.ring.or(self.block) {
            Some(size) => size - position % size,
            None => usize::MAX,
        }
    }

    /// The row of a position. `table` is what follows the bases of the step's tokens.
    pub(crate) fn row(self, table: &[u32], base: usize, position: usize) -> usize {
        if let Some(ring) = self.ring {
            return base / self.context * ring + position % ring;
        }
        let Some(block) = self.block else { return base + position };
        let place = base / self.context * self.blocks_per_sequence() + position / block;
        table[place] as usize * block + position % block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_within_half_a_step() {
        let width = 64;
        let numbers: Vec<f32> =
            (0..width).map(|i| ((i * 37 % 64) as f32 - 31.0) * if i < 32 { 0.1 } else { 3.0 }).collect();
        for (element, step) in [
            (CacheElement::F32, 0.0),
            (CacheElement::F16, 1e-3),
            (CacheElement::Q8_0, 1.0 / 127.0),
            (CacheElement::Q4_0, 1.0 / 8.0),
        ] {
            let mut cache = Values::zeros(3 * element.words(width), element.dtype());
            element.write(&mut cache, 1, &numbers);
            let back = element.read(&cache, width);
            let parts = element.parts(3, width);
            assert_eq!(parts.iter().map(|part| part.1).sum::<usize>(), element.words(width));
            assert_eq!(parts.last().map(|(first, words)| first + 3 * words), Some(cache.len()), "{}", element.name());
            assert!(
                back[..width].iter().chain(&back[2 * width..]).all(|&v| v == 0.0),
                "{}: other rows",
                element.name()
            );
            for (block, found) in numbers.chunks(32).zip(back[width..].chunks(32)) {
                let peak = block.iter().fold(0f32, |m, v| m.max(v.abs()));
                assert!(
                    block.iter().zip(found).all(|(a, b)| (a - b).abs() <= step * peak * 1.001),
                    "{}",
                    element.name()
                );
            }
            assert_eq!(CacheElement::of(element.words(width), width), element);
        }
    }

    #[test]
    fn a_ring_has_a_row_for_every_position() {
        let rows = CacheRows { ring: Some(32), ..CacheRows::direct(100) };
        assert_eq!([(0, 5), (100, 37), (200, 31)].map(|(base, at)| rows.row(&[], base, at)), [5, 37, 95]);
        assert_eq!((rows.consecutive(5), rows.consecutive(95)), (27, 1));
        assert_eq!(CacheRows::direct(100).row(&[], 100, 37), 137);
    }

    #[test]
    fn a_table_is_found_from_both_ends() {
        for tokens in 1..=9 {
            let bases: Vec<u32> = (100..100 + tokens as u32).collect();
            assert_eq!(CacheRows::with_table(&bases, &[]), bases);
            assert_eq!(CacheRows::split_table(&bases, tokens), (&bases[..], &[][..]));
            let words = CacheRows::with_table(&bases, &[1, 2, 3, 4, 5]);
            assert_eq!(words.len(), CacheRows::bases_len(tokens, 5));
            assert_eq!(CacheRows::split_table(&words, tokens), (&bases[..], &[1, 2, 3, 4, 5, 0, 0, 0][..]));
            assert_eq!(words[words.len() - 8..][..5], [1, 2, 3, 4, 5]);
        }
    }

    #[test]
    fn a_table_gives_blocks_to_sequences() {
        let rows = CacheRows { block: Some(32), ..CacheRows::direct(100) };
        let table = [6, 2, 0, 4, 1, 7, 3, 5];
        assert_eq!(rows.blocks_per_sequence(), 4);
        let found = [(0, 5), (0, 99), (100, 0), (100, 37)].map(|(base, at)| rows.row(&table, base, at));
        assert_eq!(found, [6 * 32 + 5, 4 * 32 + 3, 32, 7 * 32 + 5]);
        assert_eq!((rows.consecutive(0), rows.consecutive(37)), (32, 27));
    }
}
