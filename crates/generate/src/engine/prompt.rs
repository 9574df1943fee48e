//! Prompts: each is read in pieces, alone or in one step with the next tokens of the running answers.
//!
//! A step that mixes both reads every weight once for both, and an answer's next token waits for one step instead of
//! two. Its kernels are those for many tokens, so that an answer's sums may be rounded in another order than without a
//! prompt beside it. Where that must not happen ([`super::StepSizes::Invariant`]), pieces and answers take turns, and
//! so they do where rows cannot be filled up (recurrent models), where proposals are verified, and where prompt and
//! answers have different adapters.

#[cfg(not(target_arch = "wasm32"))]
use std::time::Instant;

#[cfg(target_arch = "wasm32")]
use web_time::Instant;

use super::batch::{Event, JobId, OnEvent};
use super::schedule::Row;
use super::score::{Scores, TokenScore};
use super::step::{Packed, StepKind};
use super::{Engine, FinishReason, LOGITS_CHUNK};
use crate::GenerateError;

/// The next tokens of a prompt.
struct NextPiece {
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

impl Engine {
    /// Computes the next piece of a prompt into the cache, with the next tokens of the answers that may share its step.
    /// Returns the jobs that need no other step in this round.
    pub(super) async fn fill(&mut self, index: usize, on_event: OnEvent<'_>) -> Result<Vec<JobId>, GenerateError> {
        self.share_more(index)?;
        let mut served = Vec::new();
        if let Some(piece) = self.next_piece(index) {
            if self.may_mix(index) {
                // The step's rows are other ones than before.
                self.drain(on_event).await?;
                served = self.answers_beside(index).map(|row| row.id).collect();
            }
            let found = match served.is_empty() {
                true => self.read_alone(index, &piece).await?,
                false => {
                    self.read_beside(index, &piece, &served, on_event).await?;
                    Vec::new()
                }
            };
            self.cached[piece.slot].extend_from_slice(&piece.ids[..piece.tokens]);
            self.written[piece.slot] = self.written[piece.slot].max(piece.end());
            let id = self.jobs.rows[index].id;
            if !found.is_empty() && on_event(id, Event::Prompt(found)).is_break() {
                self.cancel(id);
            }
        }
        let row = &mut self.jobs.rows[index];
        let filled = self.cached[row.slot].len() + 1 == row.job.prompt.len();
        if filled && row.finish.is_none() {
            row.usage.prefill_seconds = row.start.elapsed().as_secs_f64();
            row.answers = true;
            // Its first token is computed in the next round, together with the others' next ones.
            served.extend((!served.is_empty()).then_some(row.id));
            match row.job.max_tokens {
                0 => row.finish = Some(FinishReason::Length),
                // The next step has other rows.
                _ => self.drain(on_event).await?,
            }
        }
        Ok(served)
    }

    /// The next piece of a row's prompt, if any is left. The last token is computed with the answer.
    fn next_piece(&self, index: usize) -> Option<NextPiece> {
        let Row { slot, job, .. } = &self.jobs.rows[index];
        let at = self.cached[*slot].len();
        let left = (job.prompt.len() - 1).checked_sub(at).filter(|&left| left > 0)?;
        let chunk = self.chunks.chunk().min(if job.prompt_scores.is_some() { LOGITS_CHUNK } else { usize::MAX });
        let piece = self.sizes.piece(left, self.context() - at, chunk, self.cache.is_recurrent());
        let mut ids = job.prompt[at..at + piece.tokens].to_vec();
        ids.resize(piece.size, 0);
        let following = job.prompt[at + 1..=at + piece.tokens].to_vec();
        Some(NextPiece { slot: *slot, at, ids, tokens: piece.tokens, following })
    }

    /// Whether a row's next piece may share a step with answers.
    fn may_mix(&self, index: usize) -> bool {
        let job = &self.jobs.rows[index].job;
        self.sizes.mixes(self.cache.is_recurrent())
            && job.prompt_scores.is_none()
            && !self.may_speculate(job.adapter.as_deref())
            && self.answers_beside(index).next().is_some()
    }

    /// The answers that may share a step with a row's prompt: those with its adapter.
    fn answers_beside(&self, index: usize) -> impl Iterator<Item = &Row> {
        let adapter = &self.jobs.rows[index].job.adapter;
        self.jobs.rows.iter().filter(move |row| row.answers && row.finish.is_none() && row.job.adapter == *adapter)
    }

    /// Computes a piece alone. Returns the scores of the tokens behind it, if the job asks for them.
    async fn read_alone(&mut self, index: usize, piece: &NextPiece) -> Result<Vec<TokenScore>, GenerateError> {
        let job = &self.jobs.rows[index].job;
        let (scores, adapter) = (job.prompt_scores, job.adapter.clone());
        let size = piece.ids.len();
        let kind = if scores.is_some() { StepKind::ScoredPrompt(size) } else { StepKind::Prefill(size) };
        let prepared = self.steps.contains_key(&(kind, adapter.clone()));
        let step = self.prepared_step(kind, adapter.as_deref()).await?;
        if !prepared {
            // The time of compiling kernels must not count as the device's speed.
            self.devices.flush().await?;
        }
        let start = Instant::now();
        step.write(&piece.ids, piece.at, piece.slot * self.context(), &self.cache.table());
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
            None => step.run_prefill(piece.end(), self.chunks.submissions()).await?,
        }
        self.chunks.adapt(size, start.elapsed().as_secs_f64());
        Ok(found)
    }

    /// Computes a piece and the next token of each of these answers in one step. No step may be in flight.
    async fn read_beside(
        &mut self,
        index: usize,
        piece: &NextPiece,
        answers: &[JobId],
        on_event: OnEvent<'_>,
    ) -> Result<(), GenerateError> {
        let adapter = self.jobs.rows[index].job.adapter.clone();
        let rows = self.sizes.row_count(answers.len(), self.sequences(), false);
        let scored = self.answers_beside(index).any(|row| row.job.scores.is_some());
        let kind = StepKind::Mixed { rows, piece: piece.ids.len(), scored };
        let step = self.prepared_step(kind, adapter.as_deref()).await?;
        self.lay_out(step.clone(), answers.to_vec());
        self.constrain(on_event);
        let (mut packed, mut longest) = (Packed::default(), piece.end());
        for row in self.laid_rows().into_iter().flat_map(|(_, rows)| rows) {
            let position = row.tokens.len() - 1;
            packed.push(&row.tokens[position..], position, row.slot * self.context());
            longest = longest.max(row.tokens.len());
        }
        packed.push(&piece.ids, piece.at, piece.slot * self.context());
        packed.rows = (0..rows as u32).collect();
        step.write_packed(&packed, &self.cache.table());
        let reads = step.submit_reading(longest).await?;
        self.jobs.submitted(reads);
        self.drain(on_event).await
    }
}
