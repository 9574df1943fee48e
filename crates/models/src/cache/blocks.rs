//! The blocks of a cache and the tables that give them to sequences.
//!
//! A sequence has blocks for the positions that it uses. Sequences that begin alike point at the same whole blocks;
//! none of them writes there, because each writes behind what they share. Block 0 belongs to nobody: the places of a
//! table without a block point at it, so that the tokens that fill a step up have somewhere to write.

use std::collections::BTreeSet;

/// Positions of a block: as many as the attention kernels of hardware take in one run, so that a run is in one block.
pub const BLOCK: usize = 64;

/// Which sequence has which blocks.
#[derive(Debug)]
pub struct Blocks {
    /// For each sequence, its blocks in the order of positions.
    tables: Vec<Vec<u32>>,
    /// For each block, the number of tables that it is in.
    users: Vec<u32>,
    free: BTreeSet<u32>,
    /// Number of blocks that a whole context needs.
    per_sequence: usize,
    version: u64,
}

/// Rows at the beginning of a block that are copied to another block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// The block that is read.
    pub from: u32,
    /// The block that is written.
    pub to: u32,
    /// Number of rows.
    pub rows: usize,
}

impl Blocks {
    /// `count` blocks for sequences of at most `context` positions.
    pub fn new(count: usize, sequences: usize, context: usize) -> Blocks {
        Blocks {
            tables: vec![Vec::new(); sequences],
            users: vec![0; count + 1],
            free: (1..=count as u32).collect(),
            per_sequence: context.div_ceil(BLOCK),
            version: 0,
        }
    }

    /// Number of blocks, and of those that no sequence has.
    pub fn load(&self) -> (usize, usize) {
        (self.users.len() - 1, self.free.len())
    }

    /// Changes with every change of a table.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The blocks of a sequence.
    pub fn of(&self, sequence: usize) -> &[u32] {
        &self.tables[sequence]
    }

    /// The tables of all sequences as kernels read them: a place for each block of each context.
    pub fn words(&self) -> Vec<u32> {
        let mut words = vec![0; self.tables.len() * self.per_sequence];
        for (place, table) in words.chunks_exact_mut(self.per_sequence).zip(&self.tables) {
            place[..table.len()].copy_from_slice(table);
        }
        words
    }

    /// Gives a sequence blocks for its first `positions` positions. Returns whether there were enough; without, nothing
    /// changes.
    #[must_use]
    pub fn reserve(&mut self, sequence: usize, positions: usize) -> bool {
        let missing = positions.div_ceil(BLOCK).min(self.per_sequence).saturating_sub(self.tables[sequence].len());
        if missing > self.free.len() {
            return false;
        }
        for _ in 0..missing {
            let block = self.take();
            self.tables[sequence].extend(block);
        }
        true
    }

    /// Takes the blocks behind the first `positions` positions away from a sequence.
    pub fn truncate(&mut self, sequence: usize, positions: usize) {
        let kept = positions.div_ceil(BLOCK).min(self.tables[sequence].len());
        for block in self.tables[sequence].split_off(kept) {
            self.release(block);
        }
    }

    /// As [`Blocks::truncate`], for a sequence that goes on behind these positions: a last block that others have too is
    /// replaced by one of its own, whose rows must be copied. Without a free block the whole last block is taken away;
    /// returns the number of positions that are left, and the copy.
    pub fn rewind(&mut self, sequence: usize, positions: usize) -> (usize, Option<BlockCopy>) {
        self.truncate(sequence, positions);
        let rows = positions % BLOCK;
        let Some(&last) = self.tables[sequence].last().filter(|_| rows > 0) else { return (positions, None) };
        if self.users[last as usize] == 1 {
            return (positions, None);
        }
        self.truncate(sequence, positions - rows);
        match self.take() {
            Some(own) => {
                self.tables[sequence].push(own);
                (positions, Some(BlockCopy { from: last, to: own, rows }))
            }
            None => (positions - rows, None),
        }
    }

    /// Lets a sequence begin with the first `positions` positions of another one: it points at the whole blocks, and
    /// the rest must be copied. Fails if that needs a block and none is free; nothing changes then.
    pub fn share(&mut self, from: usize, to: usize, positions: usize) -> Result<Option<BlockCopy>, NoBlock> {
        let (whole, rows) = (positions / BLOCK, positions % BLOCK);
        let released = self.tables[to].iter().filter(|&&block| self.users[block as usize] == 1).count();
        if rows > 0 && self.free.is_empty() && released == 0 {
            return Err(NoBlock);
        }
        let shared = self.tables[from][..whole].to_vec();
        let source = self.tables[from].get(whole).copied();
        shared.iter().for_each(|&block| self.users[block as usize] += 1);
        self.truncate(to, 0);
        self.tables[to] = shared;
        self.version += 1;
        let Some(source) = source.filter(|_| rows > 0) else { return Ok(None) };
        let Some(own) = self.take() else { return Err(NoBlock) };
        self.tables[to].push(own);
        Ok(Some(BlockCopy { from: source, to: own, rows }))
    }

    /// Takes all blocks from all sequences.
    pub fn clear(&mut self) {
        (0..self.tables.len()).for_each(|sequence| self.truncate(sequence, 0));
    }

    fn take(&mut self) -> Option<u32> {
        let block = self.free.pop_first()?;
        self.users[block as usize] = 1;
        self.version += 1;
        Some(block)
    }

    fn release(&mut self, block: u32) {
        let users = &mut self.users[block as usize];
        *users -= 1;
        if *users == 0 {
            self.free.insert(block);
        }
        self.version += 1;
    }
}

/// No block is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoBlock;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_have_blocks_for_the_positions_they_use() {
        let mut blocks = Blocks::new(5, 3, 4 * BLOCK);
        assert!(blocks.reserve(0, 1) && blocks.reserve(1, BLOCK + 1) && blocks.reserve(0, BLOCK));
        assert_eq!((blocks.of(0), blocks.of(1), blocks.load()), (&[1][..], &[2, 3][..], (5, 2)));
        assert!(!blocks.reserve(2, 2 * BLOCK + 1) && blocks.of(2).is_empty(), "two are left");
        assert!(blocks.reserve(0, 9 * BLOCK - 6 * BLOCK), "{:?}", blocks.of(0));
        assert_eq!(blocks.words(), [1, 4, 5, 0, 2, 3, 0, 0, 0, 0, 0, 0]);
        blocks.truncate(1, 1);
        assert_eq!((blocks.of(1), blocks.load()), (&[2][..], (5, 1)));
        blocks.clear();
        assert_eq!(blocks.load(), (5, 5));
    }

    #[test]
    fn whole_blocks_are_shared_and_the_rest_is_copied() {
        let mut blocks = Blocks::new(6, 3, 4 * BLOCK);
        assert!(blocks.reserve(0, 3 * BLOCK));
        let copy = blocks.share(0, 1, 2 * BLOCK + 7);
        assert_eq!(copy, Ok(Some(BlockCopy { from: 3, to: 4, rows: 7 })));
        assert_eq!((blocks.of(1), blocks.load()), (&[1, 2, 4][..], (6, 2)));
        assert_eq!(blocks.share(1, 2, BLOCK), Ok(None));
        blocks.truncate(0, 0);
        assert_eq!(blocks.load(), (6, 3), "the shared blocks are still used");
        blocks.clear();
        assert_eq!(blocks.load(), (6, 6));
    }

    #[test]
    fn who_goes_on_in_a_shared_block_gets_its_own() {
        let mut blocks = Blocks::new(4, 2, 4 * BLOCK);
        assert!(blocks.reserve(0, 2 * BLOCK));
        assert_eq!(blocks.share(0, 1, 2 * BLOCK), Ok(None));
        assert_eq!(blocks.rewind(1, BLOCK + 9), (BLOCK + 9, Some(BlockCopy { from: 2, to: 3, rows: 9 })));
        assert_eq!(blocks.rewind(1, BLOCK + 2), (BLOCK + 2, None), "it is its own already");
        assert_eq!((blocks.of(0), blocks.of(1)), (&[1, 2][..], &[1, 3][..]));
        assert_eq!(blocks.rewind(1, BLOCK), (BLOCK, None));
        assert!(blocks.reserve(0, 4 * BLOCK));
        assert_eq!(blocks.rewind(1, 5), (0, None), "no block is free");
        assert_eq!(blocks.share(0, 1, 5), Err(NoBlock));
    }
}
