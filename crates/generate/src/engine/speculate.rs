//! Speculative decoding: the next tokens of an answer are proposed, and one step verifies all of them.
//!
//! The step computes the last token of an answer and the proposals behind it, and samples after each of them with the
//! answer's own settings, seed and positions. The first sampled token is the next one in any case. While a sampled
//! token equals the proposal at its place, the token sampled after that proposal is the next one too; what the step
//! computed behind the first difference is overwritten later. Every token of an answer is therefore sampled from the
//! model's logits at its place, by the same rule as without proposals. Only the number of tokens in a step differs, so
//! that sums may be rounded in another order, as they may be beside other answers.
//!
//! Rejected: accepting a proposal with a probability (Leviathan et al., 2023), because the sampler already draws the
//! same token from the same logits: comparing tokens keeps the distribution and the answer of each seed.
//!
//! Answers with a grammar, penalties, biases or scores get no proposals and are computed as without: each of their
//! tokens changes what may follow, or its logits are read. So do answers at the end of the context.

use super::adapters::StepAdapters;
use super::batch::{Job, JobId, OnEvent};
use super::schedule::Row;
use super::step::{Packed, Sampling, StepKind};
use super::{Engine, LOGITS_CHUNK};
use crate::GenerateError;

/// Most proposals for an answer in one step.
pub const MOST_PROPOSALS: usize = 31;

/// Lengths of the ends of a text that are looked up, the longest first. Shorter ends are found too often where
/// something else follows.
const LOOKED_UP: [usize; 2] = [3, 2];

/// Where proposals come from.
enum Source {
    /// What followed the last tokens when they occurred before, in the prompt or in the answer.
    Lookup,
    /// A smaller model with the same vocabulary.
    Draft(Box<Engine>),
}

/// How the engine speculates.
pub(super) struct Speculation {
    source: Source,
    /// Proposals for an answer in one step.
    proposals: usize,
    /// Most answers in one step.
    rows: usize,
    /// The sampler of the steps, one row for each token.
    pub(super) sampling: Sampling,
}

impl Speculation {
    /// Tokens of an answer in one step.
    fn width(&self) -> usize {
        self.proposals + 1
    }

    pub(super) fn draft(&self) -> Option<&Engine> {
        if let Source::Draft(draft) = &self.source { Some(draft) } else { None }
    }

    pub(super) fn draft_mut(&mut self) -> Option<&mut Engine> {
        if let Source::Draft(draft) = &mut self.source { Some(draft) } else { None }
    }
}

impl Row {
    /// Whether an answer may get this many proposals.
    fn may_speculate(&self, proposals: usize, context: usize) -> bool {
        let job = &self.job;
        let plain = job.grammar.is_none() && job.bias.is_empty() && job.scores.is_none() && !job.settings.adjusts();
        let answers = self.answers && self.finish.is_none() && self.tokens_left() > 1;
        answers && plain && self.tokens.len() + proposals <= context
    }
}

impl Engine {
    /// From now on, answers get up to this many proposals in a step from their own text: what followed their last
    /// tokens when these occurred before.
    ///
    /// # Errors
    /// The number is 0 or above [`MOST_PROPOSALS`], the model is recurrent, or the device's memory is exhausted.
    pub fn propose_by_lookup(&mut self, proposals: usize) -> Result<(), GenerateError> {
        self.propose(Source::Lookup, proposals)
    }

    /// From now on, answers get this many proposals in a step from another model. Its vocabulary must be the same,
    /// which the caller checks.
    ///
    /// # Errors
    /// As [`Engine::propose_by_lookup`], or the other model is recurrent.
    pub fn propose_by_draft(&mut self, draft: Engine, proposals: usize) -> Result<(), GenerateError> {
        if draft.cache.is_recurrent() {
            return Err(GenerateError::RecurrentProposals { what: "the draft model" });
        }
        self.propose(Source::Draft(Box::new(draft)), proposals)
    }

    fn propose(&mut self, source: Source, proposals: usize) -> Result<(), GenerateError> {
        if !(1..=MOST_PROPOSALS).contains(&proposals) {
            return Err(GenerateError::Proposals { got: proposals, most: MOST_PROPOSALS });
        }
        if self.cache.is_recurrent() {
            return Err(GenerateError::RecurrentProposals { what: "the model" });
        }
        self.steps.retain(|(kind, _), _| !matches!(kind, StepKind::Verify { .. }));
        let rows = self.sequences.min(LOGITS_CHUNK / (proposals + 1));
        let vocabulary = self.decoder.sizes().vocab_size;
        let sampling = Sampling::new(self.head_gpu.as_ref(), rows * (proposals + 1), vocabulary)?;
        self.speculation = Some(Speculation { source, proposals, rows, sampling });
        Ok(())
    }

    /// The kinds of steps that verify proposals, for compiling them at start.
    pub(super) fn verifying_kinds(&self) -> Vec<StepKind> {
        let Some(speculation) = &self.speculation else { return Vec::new() };
        let width = speculation.width();
        self.sizes.rows(speculation.rows, false).into_iter().map(|rows| StepKind::Verify { rows, width }).collect()
    }

    /// Whether an answer with this adapter may get proposals.
    pub(super) fn may_speculate(&self, adapter: Option<&str>) -> bool {
        self.speculation.as_ref().is_some_and(|speculation| {
            let mut rows = self.jobs.rows.iter().filter(|row| row.job.adapter.as_deref() == adapter);
            rows.any(|row| row.may_speculate(speculation.proposals, self.context()))
        })
    }

    /// Verifies proposals for the answers with an adapter. Returns the jobs that went on by it.
    pub(super) async fn speculate(
        &mut self,
        adapter: Option<&str>,
        on_event: OnEvent<'_>,
    ) -> Result<Vec<JobId>, GenerateError> {
        if !self.may_speculate(adapter) {
            return Ok(Vec::new());
        }
        // Proposals follow the last token.
        self.drain(on_event).await?;
        let mut proposed = self.proposals(adapter).await?;
        proposed.retain(|(id, ids)| {
            let row = self.jobs.row(*id).map(|row| (row.slot, row.tokens.len() + ids.len()));
            row.is_some_and(|(slot, positions)| self.reserve(slot, positions))
        });
        let most = self.speculation.as_ref().map_or(1, |speculation| speculation.rows);
        for part in proposed.chunks(most) {
            self.verify(adapter, part, on_event).await?;
        }
        Ok(proposed.into_iter().map(|(id, _)| id).collect())
    }

    /// Proposals for the answers with an adapter that have some.
    async fn proposals(&mut self, adapter: Option<&str>) -> Result<Vec<(JobId, Vec<u32>)>, GenerateError> {
        let (context, vocabulary) = (self.context(), self.decoder.sizes().vocab_size);
        let Some(speculation) = &mut self.speculation else { return Ok(Vec::new()) };
        let count = speculation.proposals;
        let rows = self.jobs.rows.iter().filter(|row| row.job.adapter.as_deref() == adapter);
        let rows = rows.filter(|row| row.may_speculate(count, context));
        let draft = match &mut speculation.source {
            Source::Lookup => return Ok(rows.filter_map(|row| Some((row.id, look_up(&row.tokens, count)?))).collect()),
            Source::Draft(draft) => draft,
        };
        let mut found: Vec<(JobId, JobId, Vec<u32>)> = Vec::new();
        for row in rows {
            // What the draft model cannot read gets no proposals. It samples with the settings and the seed of the
            // answer, so that it draws the same tokens where it predicts alike.
            if draft.check_prompt(&row.tokens).is_err() {
                continue;
            }
            let (prompt, settings, owner) = (row.tokens.clone(), row.job.settings, row.job.owner);
            let job = Job { prompt, settings, owner, max_tokens: count, ..Default::default() };
            found.push((draft.add(job)?, row.id, Vec::new()));
        }
        let mut on_event = |id: JobId, event| {
            if let super::Event::Token { id: token, .. } = event {
                found.iter_mut().filter(|entry| entry.0 == id).for_each(|entry| entry.2.push(token));
            }
            std::ops::ControlFlow::Continue(())
        };
        while Box::pin(draft.advance(&mut on_event)).await? {}
        // A draft model may have a shorter context, and rows of its vocabulary without a token.
        let usable = |ids: &[u32]| ids.len() == count && ids.iter().all(|&id| (id as usize) < vocabulary);
        Ok(found.into_iter().filter(|(_, _, ids)| usable(ids)).map(|(_, id, ids)| (id, ids)).collect())
    }

    /// Computes one step for these answers with their proposals, and takes the tokens that are certain.
    async fn verify(
        &mut self,
        adapter: Option<&str>,
        proposed: &[(JobId, Vec<u32>)],
        on_event: OnEvent<'_>,
    ) -> Result<(), GenerateError> {
        let Some((width, most)) = self.speculation.as_ref().map(|s| (s.width(), s.rows)) else { return Ok(()) };
        let size = self.sizes.row_count(proposed.len(), most, false);
        let adapters = StepAdapters::Same(adapter.map(str::to_string));
        let step = self.prepared_step(StepKind::Verify { rows: size, width }, &adapters).await?;
        let (mut packed, mut longest) = (Packed::default(), 0);
        for number in 0..size {
            // What fills the step up computes and writes exactly what the first answer does.
            let (id, ids) = proposed.get(number).unwrap_or(&proposed[0]);
            let Some(row) = self.jobs.rows.iter().find(|row| row.id == *id) else { continue };
            let start = row.tokens.len() - 1;
            packed.push(&[&row.tokens[start..], ids].concat(), start, row.slot * self.context());
            longest = longest.max(start + width);
            if let Some(speculation) = &self.speculation {
                for at in number * width..(number + 1) * width {
                    speculation.sampling.write(self.head_gpu.as_ref(), at, &row.job.settings, &[], &[]);
                }
            }
        }
        step.write_packed(&packed, &self.cache.table());
        let Some(read) = step.submit_reading(longest).await?.into_iter().next() else { return Ok(()) };
        let sampled = read.wait().await?;
        for ((id, ids), sampled) in proposed.iter().zip(sampled.u32().chunks_exact(width)) {
            let Some(row) = self.jobs.row(*id) else { continue };
            self.written[row.slot] = self.written[row.slot].max(row.tokens.len() - 1 + width);
            row.take_verified(ids, sampled, &self.control, on_event);
        }
        Ok(())
    }
}

impl Row {
    /// Takes the tokens that were sampled after the last token and after each proposal, as far as they are certain.
    fn take_verified(&mut self, proposed: &[u32], sampled: &[u32], control: &super::Control, on_event: OnEvent<'_>) {
        let mut accepted = 0;
        for (place, &token) in sampled.iter().enumerate() {
            let before = self.usage.generated_tokens;
            self.submitted += 1;
            self.take(token, || None, control, on_event);
            let equal = proposed.get(place) == Some(&token);
            if equal && self.usage.generated_tokens > before {
                accepted += 1;
            }
            if !equal || self.finish.is_some() {
                break;
            }
        }
        self.usage.accepted_tokens += accepted;
        self.usage.rejected_tokens += proposed.len() - accepted;
    }
}

/// `count` tokens that may follow a text: those that followed its last tokens when these occurred before, the longest
/// and latest such place. Where the text ends, what was proposed continues it.
fn look_up(text: &[u32], count: usize) -> Option<Vec<u32>> {
    let ends = LOOKED_UP.into_iter().filter(|&length| length < text.len());
    let found = ends.filter_map(|length| {
        let (before, end) = (&text[..text.len() - 1], &text[text.len() - length..]);
        before.windows(length).rposition(|window| window == end).map(|at| at + length)
    });
    let from = found.into_iter().next()?;
    let mut whole = text.to_vec();
    for at in from..from + count {
        whole.push(whole[at]);
    }
    Some(whole.split_off(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_and_latest_place_is_continued() {
        assert_eq!(look_up(&[1, 2, 3, 4, 5, 9, 2, 3], 2), Some(vec![4, 5]));
        assert_eq!(look_up(&[2, 3, 7, 2, 3, 8, 2, 3], 3), Some(vec![8, 2, 3]), "the latest");
        assert_eq!(look_up(&[1, 2, 3, 7, 2, 3, 8, 1, 2, 3], 2), Some(vec![7, 2]), "three tokens before two");
        assert_eq!(look_up(&[1, 2, 3, 4], 2), None);
        assert_eq!(look_up(&[4], 2), None);
        assert_eq!(look_up(&[4, 4], 2), None, "one token is not enough");
    }

    #[test]
    fn repetitions_go_on_beyond_the_end() {
        assert_eq!(look_up(&[5, 6, 5, 6], 5), Some(vec![5, 6, 5, 6, 5]));
        assert_eq!(look_up(&[0, 7, 7, 7], 3), Some(vec![7, 7, 7]));
    }
}
