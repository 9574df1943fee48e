//! Prefixes that jobs share. Each slot of the cache holds one sequence, in blocks. A job whose prompt begins as the
//! tokens of another slot points at the same whole blocks, and gets a copy of the rest of a block on the device; a
//! prefix is found only by jobs of the same owner and adapter.
//!
//! Slots keep their tokens after an answer. A job that uses most of a free slot takes that slot; else it takes the free
//! slot that was used least recently.

use std::cmp::Reverse;

use super::batch::{Job, JobId};
use super::schedule::Row;
use super::{Engine, StepSizes};
use crate::GenerateError;

/// Fewer tokens are computed anew, not copied: the smallest step of a prompt has about as many.
pub(super) const LEAST_COPIED: usize = 16;

impl Engine {
    /// Positions of a slot that have been written, also by steps whose results are not read yet.
    fn written_in(&self, slot: usize) -> usize {
        let row = self.jobs.rows.iter().find(|row| row.slot == slot);
        row.map_or(0, Row::written).max(self.written[slot])
    }

    /// The number of tokens at the beginning of a job's prompt that a slot has.
    fn usable(&self, slot: usize, job: &Job) -> usize {
        let own = self.owners[slot] == job.owner && self.slot_adapters[slot] == job.adapter;
        if !own || job.prompt_scores.is_some() {
            return 0;
        }
        // The last token is computed in any case: its logits are needed.
        let wanted = &job.prompt[..job.prompt.len() - 1];
        let common = self.cached[slot].iter().zip(wanted).take_while(|(a, b)| a == b).count();
        if !self.cache.can_rewind(self.written_in(slot), common) {
            return 0;
        }
        // Pieces of a prompt must begin where they would without the cache.
        let multiple = if self.sizes == StepSizes::Invariant { self.chunks.chunk() } else { 1 };
        common - common % multiple
    }

    /// The slot with most of a job's prompt, and the number of its tokens: a free slot among equals, and among those
    /// the least recently used.
    pub(super) fn source(&self, job: &Job) -> (usize, usize) {
        let order = |slot: usize| (self.usable(slot, job), self.is_free(slot), Reverse(self.used[slot]), Reverse(slot));
        let best = (0..self.slots()).max_by_key(|&slot| order(slot)).unwrap_or(0);
        (best, self.usable(best, job))
    }

    pub(super) fn is_free(&self, slot: usize) -> bool {
        self.jobs.rows.iter().all(|row| row.slot != slot)
    }

    /// Gives a job a free slot; returns it with the number of its prompt's tokens that are there.
    ///
    /// # Errors
    /// The device's memory is exhausted.
    pub(super) fn take_slot(&mut self, id: JobId, job: &Job) -> Result<(usize, usize), GenerateError> {
        let (source, shared) = self.source(job);
        let in_place = self.is_free(source) && self.cached[source].len() - shared <= shared && shared > 0;
        let others = (0..self.slots()).filter(|&slot| (slot != source || shared == 0) && self.is_free(slot));
        let oldest = others.min_by_key(|&slot| (!self.cached[slot].is_empty(), self.used[slot], slot));
        let slot = if in_place { source } else { oldest.unwrap_or(source) };
        let mut cached = self.usable(slot, job);
        if shared >= cached + LEAST_COPIED && self.share(source, slot, shared)? {
            self.used[source] = id;
            cached = shared;
        }
        // A last block that others have too becomes the slot's own. Where no block is left for that, the tokens are
        // computed anew.
        self.spare_block(&[slot]);
        if self.cache.rewind(&self.devices.gpus, slot, cached)? < cached {
            cached = 0;
        }
        self.cached[slot].truncate(cached);
        if cached == 0 {
            self.empty(slot);
        }
        self.claim(slot, id, job);
        Ok((slot, cached))
    }

    /// Takes more of a row's prompt from another slot, where it was computed since the row got its own: several
    /// answers to one prompt compute it once.
    ///
    /// # Errors
    /// The device's memory is exhausted.
    pub(super) fn share_more(&mut self, index: usize) -> Result<(), GenerateError> {
        let row = &self.jobs.rows[index];
        let (slot, id, at) = (row.slot, row.id, self.cached[row.slot].len());
        let (source, shared) = self.source(&row.job);
        if source != slot && shared >= at + LEAST_COPIED && self.share(source, slot, shared)? {
            self.hold(slot, self.jobs.rows[index].job.prompt.len())?;
            self.used[source] = self.used[source].max(id);
            self.jobs.rows[index].usage.cached_tokens += shared - at;
        }
        Ok(())
    }

    /// Lets a slot begin with the first tokens of another one. Returns whether there was a block for that.
    fn share(&mut self, from: usize, to: usize, tokens: usize) -> Result<bool, GenerateError> {
        self.spare_block(&[from, to]);
        if !self.cache.share_prefix(&self.devices.gpus, from, to, tokens)? {
            return Ok(false);
        }
        self.cached[to] = self.cached[from][..tokens].to_vec();
        // A ring is copied whole.
        self.written[to] = self.written_in(from);
        Ok(true)
    }
}
