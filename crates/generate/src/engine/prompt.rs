//! Prompts: each is read in pieces, alone or in one step with pieces of other prompts and the next tokens of the
//! running answers.
//!
//! Such a step reads every weight once for all, and an answer's next token waits for one step instead of several. Its
//! kernels are those for many tokens, so that an answer's sums may be rounded in another order than without a prompt
//! beside it. Where that must not happen ([`super::StepSizes::Invariant`]), pieces and answers take turns, and so they
//! do where rows cannot be filled up (recurrent models), where proposals are verified, and where prompt and answers
//! have some of many adapters.

#[cfg(not(target_arch = "wasm32"))]
use std::time::Instant;

#[cfg(target_arch = "wasm32")]
use web_time::Instant;

use bayan_tensor::ops::QUERY_TILE;

use super::adapters::StepAdapters;
use super::batch::{Event, JobId, OnEvent};
use super::prefix::LEAST_COPIED;
use super::schedule::Row;
use super::score::{Scores, TokenScore};
use super::step::{Packed, StepKind};
use super::{Engine, FinishReason, LOGITS_CHUNK};
use crate::GenerateError;

/// The next tokens of a prompt.
struct NextPiece {
    /// The number of the prompt's row.
    index: usize,
    /// The slot of the cache.
    slot: usize,
    /// Position of the first token.
    at: usize,
    /// Ids of the step: tokens of the prompt, and zeros that fill the step up.
    ids: Vec<u32>,
    /// How many of them belong to the prompt.
    tokens: usize,
    /// The token after each of the prompt's.
    following: Vec<u32>,
}

impl NextPiece {
    /// Positions of the slot that the step writes, with those before them.
    fn end(&self) -> usize {
        self.at + self.ids.len()
    }
}

/// Tokens of all pieces of a step.
fn size(pieces: &[NextPiece]) -> usize {
    pieces.iter().map(|piece| piece.ids.len()).sum()
}

/// The largest number of positions that any of the pieces' sequences has after the step.
fn longest(pieces: &[NextPiece]) -> usize {
    pieces.iter().map(NextPiece::end).max().unwrap_or(0)
}

impl Engine {
    /// Computes the next piece of a prompt into the cache, with pieces of other prompts and the next tokens of the
    /// answers that may share its step. Returns the jobs that need no other step in this round.
    pub(super) async fn fill(&mut self, index: usize, on_event: OnEvent<'_>) -> Result<Vec<JobId>, GenerateError> {
        let pieces = self.next_pieces(index)?;
        let mut served = Vec::new();
        if !pieces.is_empty() {
            if self.may_mix(index) {
                // The step's rows are other ones than before.
                self.drain(on_event).await?;
                served = self.answers_beside(index).map(|row| row.id).collect();
            }
            let found = match served.is_empty() {
                true => self.read_alone(&pieces).await?,
                false => {
                    self.read_beside(&pieces, &served, on_event).await?;
                    Vec::new()
                }
            };
            for piece in &pieces {
                self.cached[piece.slot].extend_from_slice(&piece.ids[..piece.tokens]);
                self.written[piece.slot] = self.written[piece.slot].max(piece.end());
            }
            let id = self.jobs.rows[index].id;
            if !found.is_empty() && on_event(id, Event::Prompt(found)).is_break() {
                self.cancel(id);
            }
        }
        let (mixed, mut begins) = (!served.is_empty(), false);
        let others = pieces.iter().map(|piece| piece.index).filter(|&other| other != index);
        for index in others.chain([index]) {
            let row = &mut self.jobs.rows[index];
            let filled = self.cached[row.slot].len() + 1 == row.job.prompt.len();
            if !filled || row.finish.is_some() {
                continue;
            }
            row.usage.prefill_seconds = row.start.elapsed().as_secs_f64();
            row.answers = true;
            // After a mixed step, its first token is computed in the next round, together with the others' next ones.
            served.extend(mixed.then_some(row.id));
            match row.job.max_tokens {
                0 => row.finish = Some(FinishReason::Length),
                _ => begins = true,
            }
        }
        if begins {
            // The next step has other rows.
            self.drain(on_event).await?;
        }
        Ok(served)
    }

    /// The next piece of a row's prompt, and those of other prompts that fit into the same step. None where nothing is
    /// left of the row's.
    fn next_pieces(&mut self, index: usize) -> Result<Vec<NextPiece>, GenerateError> {
        self.share_more(index)?;
        let Some(first) = self.next_piece(index) else { return Ok(Vec::new()) };
        let mut pieces = vec![first];
        let chunk = self.chunks.chunk();
        let filled = |piece: &NextPiece| piece.tokens.next_multiple_of(QUERY_TILE);
        for other in 0..self.jobs.rows.len() {
            let used: usize = pieces.iter().map(filled).sum();
            let room = chunk.saturating_sub(used);
            let room = room - room % QUERY_TILE;
            if room == 0 || pieces.iter().any(|piece| !self.may_join(other, piece)) {
                continue;
            }
            self.share_more(other)?;
            let Some(mut piece) = self.next_piece(other).filter(|piece| self.has_room_behind(piece)) else { continue };
            piece.tokens = piece.tokens.min(room);
            piece.following.truncate(piece.tokens);
            pieces.push(piece);
        }
        // All tokens of a query tile belong to one sequence. The last piece fills the step up.
        if let [.., last] = pieces.as_slice()
            && pieces.len() > 1
        {
            let used: usize = pieces.iter().map(filled).sum();
            let sizes = self.sizes.pieces(chunk, false);
            let rest = sizes.into_iter().find(|&size| size >= used).unwrap_or(used) - used;
            let last = last.index;
            for piece in &mut pieces {
                let size = filled(piece) + if piece.index == last { rest } else { 0 };
                piece.ids.truncate(piece.tokens);
                piece.ids.resize(size, 0);
            }
        }
        Ok(pieces)
    }

    /// Whether a row's prompt may be read in the step of another prompt's piece. One that begins as the other does
    /// waits, and shares what the other has then.
    fn may_join(&self, other: usize, piece: &NextPiece) -> bool {
        let [row, first] = [other, piece.index].map(|index| &self.jobs.rows[index]);
        let jobs = [&row.job, &first.job];
        let common = row.job.prompt.iter().zip(&first.job.prompt).take_while(|(a, b)| a == b).count();
        other != piece.index
            && row.is_filling()
            && self.sizes.mixes(self.cache.is_recurrent())
            && jobs.iter().all(|job| job.prompt_scores.is_none())
            && row.job.adapter == first.job.adapter
            && (row.job.owner != first.job.owner || common < self.cached[row.slot].len() + LEAST_COPIED)
            && self.has_room_behind(piece)
    }

    /// Whether the context has room for a piece of any size.
    fn has_room_behind(&self, piece: &NextPiece) -> bool {
        piece.at + self.chunks.chunk() <= self.context()
    }

    /// The next piece of a row's prompt, if any is left. The last token is computed with the answer.
    fn next_piece(&self, index: usize) -> Option<NextPiece> {
        let Row { slot, job, .. } = &self.jobs.rows[index];
        let at = self.cached[*slot].len();
        let left = (job.prompt.len() - 1).checked_sub(at).filter(|&left| left > 0)?;
        let (least, most) =
            if job.prompt_scores.is_some() { (self.least_scored(), LOGITS_CHUNK) } else { (1, usize::MAX) };
        let bounds = [least, self.chunks.chunk().min(most)];
        let piece = self.sizes.piece(left, self.context() - at, bounds, self.cache.is_recurrent());
        let mut ids = job.prompt[at..at + piece.tokens].to_vec();
        ids.resize(piece.size, 0);
        let following = job.prompt[at + 1..=at + piece.tokens].to_vec();
        Some(NextPiece { index, slot: *slot, at, ids, tokens: piece.tokens, following })
    }

    /// Whether a row's next piece may share a step with answers.
    fn may_mix(&self, index: usize) -> bool {
        let job = &self.jobs.rows[index].job;
        self.sizes.mixes(self.cache.is_recurrent())
            && job.prompt_scores.is_none()
            && !self.may_speculate(job.adapter.as_deref())
            && self.answers_beside(index).next().is_some()
    }

    /// The answers that may share a step with a row's prompt.
    fn answers_beside(&self, index: usize) -> impl Iterator<Item = &Row> {
        let (adapter, any) = (&self.jobs.rows[index].job.adapter, self.share_steps());
        let fits = move |row: &&Row| any || row.job.adapter == *adapter;
        self.jobs.rows.iter().filter(|row| row.answers && row.finish.is_none()).filter(fits)
    }

    /// Computes pieces without answers. Returns the scores of the tokens behind the first, if its job asks for them.
    async fn read_alone(&mut self, pieces: &[NextPiece]) -> Result<Vec<TokenScore>, GenerateError> {
        let piece = &pieces[0];
        let job = &self.jobs.rows[piece.index].job;
        let (scores, adapter) = (job.prompt_scores, job.adapter.clone());
        let size = size(pieces);
        let kind = if scores.is_some() { StepKind::ScoredPrompt(size) } else { StepKind::Prefill(size) };
        let adapters = StepAdapters::Same(adapter);
        let prepared = self.steps.contains_key(&(kind, adapters.clone()));
        let step = self.prepared_step(kind, &adapters).await?;
        if !prepared {
            // The time of compiling kernels must not count as the device's speed.
            self.devices.flush().await?;
        }
        let start = Instant::now();
        let mut packed = Packed::default();
        self.pack(pieces, &mut packed);
        step.write_packed(&packed, &self.cache.table());
        let mut found = Vec::new();
        match scores {
            Some(top) => {
                let mut following = piece.following.clone();
                following.resize(size, 0);
                step.write_following(&following);
                step.write_wanted(std::iter::repeat_n(scores, size));
                let mut reads = step.submit_reading(piece.end()).await?.into_iter();
                if let (Some(values), Some(ids)) = (reads.next(), reads.next()) {
                    let scores = Scores { values: values.wait().await?, ids: ids.wait().await? };
                    let vocabulary = self.decoder.sizes().vocab_size;
                    let score = |(row, &id): (usize, &u32)| scores.of_row(row, id, top.min(vocabulary));
                    found = piece.following.iter().enumerate().map(score).collect();
                }
            }
            // One piece at a time, so that a slow device never has seconds of submitted work that cannot be stopped.
            None => step.run_prefill(longest(pieces), self.chunks.submissions()).await?,
        }
        self.chunks.adapt(size, start.elapsed().as_secs_f64());
        Ok(found)
    }

    /// Adds the pieces to the tokens of a step.
    fn pack(&self, pieces: &[NextPiece], packed: &mut Packed) {
        pieces.iter().for_each(|piece| packed.push(&piece.ids, piece.at, piece.slot * self.context()));
    }

    /// Computes pieces and the next token of each of these answers in one step. No step may be in flight.
    async fn read_beside(
        &mut self,
        pieces: &[NextPiece],
        answers: &[JobId],
        on_event: OnEvent<'_>,
    ) -> Result<(), GenerateError> {
        let index = pieces[0].index;
        let adapter = self.jobs.rows[index].job.adapter.clone();
        let rows = self.sizes.row_count(answers.len(), self.sequences(), false);
        let scored = self.answers_beside(index).any(|row| row.job.scores.is_some());
        let kind = StepKind::Mixed { rows, piece: size(pieces), scored };
        let beside = self.answers_beside(index).map(|row| &row.job.adapter);
        let adapters = StepAdapters::of(beside.chain([&adapter]));
        let step = self.prepared_step(kind, &adapters).await?;
        self.lay_out(step.clone(), answers.to_vec());
        self.constrain(on_event);
        let (mut packed, mut longest) = (Packed::default(), longest(pieces));
        let mut numbers = Vec::new();
        for row in self.laid_rows().into_iter().flat_map(|(_, rows)| rows) {
            let position = row.tokens.len() - 1;
            packed.push(&row.tokens[position..], position, row.slot * self.context());
            longest = longest.max(row.tokens.len());
            numbers.push(self.adapter_number(&row.job.adapter));
        }
        self.pack(pieces, &mut packed);
        packed.rows = (0..rows as u32).collect();
        step.write_packed(&packed, &self.cache.table());
        numbers.resize(packed.ids.len(), self.adapter_number(&adapter));
        step.write_adapters(&numbers, self.loaded.len());
        let reads = step.submit_reading(longest).await?;
        self.jobs.submitted(reads);
        self.drain(on_event).await
    }
}
