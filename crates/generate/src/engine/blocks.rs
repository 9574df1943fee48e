//! Blocks of the cache for running jobs. A job has blocks for the positions that it uses; free slots keep theirs with
//! their tokens until others need them, the least recently used first. When that is not enough, the youngest job gives
//! up its slot: its part of the cache goes to host memory, and comes back when there are blocks again. Rejected:
//! computing it anew, because sums could be rounded in another order than before, and an answer would depend on what
//! ran beside it.

use std::collections::BTreeSet;

use bayan_models::BLOCK;

use super::batch::{Job, JobId, OnEvent};
use super::schedule::Row;
use super::{Engine, FinishReason};
use crate::GenerateError;

/// A job without a slot, whose cache is in host memory.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) row: Row,
    /// Positions of its cache.
    positions: usize,
    /// Positions that were written.
    written: usize,
    bytes: Vec<u8>,
}

/// Positions that a row's next step needs.
fn needed(row: &Row) -> usize {
    if row.answers { row.written() + 1 } else { row.job.prompt.len() }
}

impl Engine {
    /// Positions in the cache for all sequences together, and those of them that no slot has.
    pub fn cache_positions(&self) -> (usize, usize) {
        let (count, free) = self.cache.blocks().load();
        (count * BLOCK, free * BLOCK)
    }

    /// How often a job gave up its slot because others needed its part of the cache.
    pub fn preemptions(&self) -> u64 {
        self.jobs.preemptions
    }

    /// Gives a slot blocks for its first positions, taken from the free slots if need be. Returns whether there were
    /// enough.
    #[must_use]
    pub(super) fn reserve(&mut self, slot: usize, positions: usize) -> bool {
        while !self.cache.blocks_mut().reserve(slot, positions) {
            if !self.evict(&[slot]) {
                return false;
            }
        }
        true
    }

    /// As [`Engine::reserve`], where nothing can wait for a block.
    pub(super) fn hold(&mut self, slot: usize, positions: usize) -> Result<(), GenerateError> {
        if self.reserve(slot, positions) {
            return Ok(());
        }
        Err(GenerateError::CacheFull { needed: positions, positions: self.cache_positions().0 })
    }

    /// Empties the free slot that was used least recently, but for some. Returns whether there was one with blocks.
    fn evict(&mut self, but: &[usize]) -> bool {
        let blocks = self.cache.blocks();
        let kept =
            (0..self.slots()).filter(|slot| !but.contains(slot) && self.is_free(*slot) && !blocks.of(*slot).is_empty());
        let Some(oldest) = kept.min_by_key(|&slot| (self.used[slot], slot)) else { return false };
        self.empty(oldest);
        true
    }

    /// Forgets what a slot has.
    pub(super) fn empty(&mut self, slot: usize) {
        self.cached[slot].clear();
        self.written[slot] = 0;
        self.cache.blocks_mut().truncate(slot, 0);
    }

    /// Makes sure that a block is free, if slots other than these can give one.
    pub(super) fn spare_block(&mut self, but: &[usize]) {
        while self.cache.blocks().load().1 == 0 && self.evict(but) {}
    }

    /// Whether a job that needs `now` positions, and up to `most` later, may begin: beside it, every running job that
    /// may grow finds a block. `shared`: a slot, and the number of its first positions that the job shares.
    fn has_room(&self, now: usize, most: usize, shared: (usize, usize)) -> bool {
        if self.jobs.rows.is_empty() {
            return true;
        }
        let blocks = self.cache.blocks();
        let running = self.jobs.rows.iter().flat_map(|row| blocks.of(row.slot));
        let shared = blocks.of(shared.0).iter().take(shared.1 / BLOCK);
        let held: BTreeSet<u32> = running.chain(shared.clone()).copied().collect();
        let grows = |held: usize, most: usize| usize::from(held < most.min(self.context()).div_ceil(BLOCK));
        let growing: usize = self.jobs.rows.iter().map(|row| grows(blocks.of(row.slot).len(), row.most())).sum();
        let now = now.div_ceil(BLOCK);
        blocks.load().0 >= held.len() + now - shared.len() + grows(now, most) + growing
    }

    /// Gives free slots to parked jobs, then to those in the queue, while there is room in the cache.
    pub(super) fn admit_waiting(&mut self, on_event: OnEvent<'_>) -> Result<(), GenerateError> {
        while self.jobs.rows.len() < self.sequences() {
            let oldest = (0..self.jobs.parked.len()).min_by_key(|&index| self.jobs.parked[index].row.id);
            if let Some(index) = oldest {
                let row = &self.jobs.parked[index].row;
                if !self.has_room(needed(row), row.most(), (0, 0)) {
                    break;
                }
                let parked = self.jobs.parked.remove(index);
                self.resume(parked)?;
                continue;
            }
            let Some((_, job)) = self.jobs.waiting.front() else { break };
            if !self.has_room(job.prompt.len(), job.prompt.len().saturating_add(job.max_tokens), self.source(job)) {
                break;
            }
            let Some((id, job)) = self.jobs.waiting.pop_front() else { break };
            self.admit(id, job, on_event)?;
        }
        Ok(())
    }

    /// Reserves what the next step of every job needs; while that is not possible, the youngest job is parked.
    pub(super) async fn make_room(&mut self, on_event: OnEvent<'_>) -> Result<(), GenerateError> {
        while !self.reserve_next(|_| true) {
            // Ended jobs give their blocks first.
            self.drain(on_event).await?;
            self.retire(on_event).await?;
            if self.reserve_next(|_| true) {
                break;
            }
            let youngest = (0..self.jobs.rows.len()).max_by_key(|&index| self.jobs.rows[index].id);
            let Some(index) = youngest.filter(|_| self.jobs.rows.len() > 1) else { break };
            self.park(index).await?;
        }
        Ok(())
    }

    /// Reserves what the next step of these jobs needs, the oldest first.
    pub(super) fn reserve_next(&mut self, of: impl Fn(JobId) -> bool) -> bool {
        let rows = self.jobs.rows.iter().filter(|row| row.finish.is_none() && of(row.id));
        let mut wanted: Vec<(JobId, usize, usize)> = rows.map(|row| (row.id, row.slot, needed(row))).collect();
        wanted.sort_unstable();
        wanted.into_iter().all(|(_, slot, positions)| self.reserve(slot, positions))
    }

    /// Moves a job's part of the cache to host memory. No step may be in flight.
    async fn park(&mut self, index: usize) -> Result<(), GenerateError> {
        let row = self.jobs.rows.remove(index);
        let slot = row.slot;
        let positions = if row.answers { row.written() } else { self.cached[slot].len() };
        let mut bytes = Vec::new();
        for range in self.cache.ranges(slot, positions) {
            bytes.extend(range.read(&self.devices.gpus).await?);
        }
        let written = self.written[slot].max(positions);
        self.empty(slot);
        tracing::debug!("job {} waits for room in the cache, with {positions} positions in host memory", row.id);
        self.jobs.preemptions += 1;
        self.jobs.parked.push(Parked { row, positions, written, bytes });
        Ok(())
    }

    /// Gives a parked job a slot.
    fn resume(&mut self, parked: Parked) -> Result<(), GenerateError> {
        let Parked { mut row, positions, written, bytes } = parked;
        let free = (0..self.slots()).filter(|&slot| self.is_free(slot));
        let slot = free.min_by_key(|&slot| (!self.cached[slot].is_empty(), self.used[slot], slot)).unwrap_or(0);
        self.empty(slot);
        self.hold(slot, needed(&row))?;
        let mut rest = bytes.as_slice();
        for range in self.cache.ranges(slot, positions) {
            let (own, after) = rest.split_at(range.size_bytes());
            range.write(&self.devices.gpus, own);
            rest = after;
        }
        self.cached[slot] = row.tokens[..positions.min(row.job.prompt.len() - 1)].to_vec();
        self.written[slot] = written;
        self.claim(slot, row.id, &row.job);
        row.slot = slot;
        self.jobs.rows.push(row);
        Ok(())
    }

    /// Notes whose tokens a slot has.
    pub(super) fn claim(&mut self, slot: usize, id: JobId, job: &Job) {
        self.owners[slot] = job.owner;
        self.slot_adapters[slot] = job.adapter.clone();
        self.used[slot] = id;
    }

    /// Ends parked jobs that were cancelled, and all of them when the generation was stopped.
    pub(super) fn end_parked(&mut self, on_event: OnEvent<'_>) {
        let stopped = self.control.is_stopped();
        for Parked { row, .. } in self.jobs.parked.extract_if(.., |parked| stopped || parked.row.finish.is_some()) {
            let finish = row.finish.unwrap_or(FinishReason::Stopped);
            let _ = on_event(row.id, super::Event::Ended(super::Usage { finish, ..row.usage }));
        }
    }
}
