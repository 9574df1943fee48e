//! Jobs that come and go: each has a slot of the cache, a step computes one token of every unfinished answer, and
//! pieces of prompts are computed in those steps or between them (`prompt.rs`).
//!
//! A step reads every weight once for all its sequences. When the answers change, the submitted steps are awaited and
//! the rows are laid out again.

use std::collections::VecDeque;
use std::rc::Rc;
#[cfg(not(target_arch = "wasm32"))]
use std::time::Instant;

#[cfg(target_arch = "wasm32")]
use web_time::Instant;

use bayan_tensor::ops::{MOST_LIKELY, SampleSettings};

use super::adapters::StepAdapters;
use super::batch::{Event, Job, JobId, OnEvent};
use super::blocks::Parked;
use super::device_plan::PendingValues;
use super::score::{Scores, TokenScore};
use super::step::{Step, StepKind, refuse_all_banned};
use super::{Control, Engine, FinishReason, Usage};
use crate::GenerateError;

/// Most decoding steps that may be submitted before the host reads the tokens of the oldest.
const STEPS_AHEAD: usize = 3;

/// A job with a slot.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: JobId,
    /// Its slot in the cache.
    pub(super) slot: usize,
    pub(super) job: Job,
    /// The prompt and the tokens generated so far.
    pub(super) tokens: Vec<u32>,
    /// Whether the prompt is in the cache, all but its last token.
    pub(super) answers: bool,
    /// Submitted steps: this many tokens, from the prompt's last one on, are in the cache.
    pub(super) submitted: usize,
    /// The number of new tokens that job and context allow.
    limit: usize,
    pub(super) usage: Usage,
    pub(super) finish: Option<FinishReason>,
    pub(super) start: Instant,
}

impl Row {
    fn accept(&mut self, token: u32, stopped: bool) -> bool {
        let elapsed = self.start.elapsed().as_secs_f64();
        match self.usage.generated_tokens {
            0 => self.usage.prefill_seconds = elapsed,
            _ => self.usage.decode_seconds = elapsed - self.usage.prefill_seconds,
        }
        if self.job.stop.contains(&token) || stopped {
            self.finish = Some(if stopped { FinishReason::Stopped } else { FinishReason::Stop });
            return false;
        }
        self.usage.generated_tokens += 1;
        self.tokens.push(token);
        if self.usage.generated_tokens >= self.limit {
            self.finish =
                Some(if self.limit < self.job.max_tokens { FinishReason::ContextFull } else { FinishReason::Length });
        }
        true
    }

    /// Takes a sampled token: the next one of the answer, or its end.
    pub(super) fn take(
        &mut self,
        token: u32,
        score: impl FnOnce() -> Option<TokenScore>,
        control: &Control,
        on_event: OnEvent<'_>,
    ) {
        if !self.accept(token, control.is_stopped()) {
            return;
        }
        control.count(control.tokens() + 1);
        if on_event(self.id, Event::Token { id: token, score: score() }).is_break() {
            self.finish = Some(FinishReason::Stopped);
        } else {
            self.follow(token, on_event);
        }
    }

    /// Number of tokens that the answer may still get.
    pub(super) fn tokens_left(&self) -> usize {
        self.limit - self.usage.generated_tokens.min(self.limit)
    }

    /// Number of steps still to be submitted.
    fn steps_left(&self) -> usize {
        self.limit - self.submitted.min(self.limit)
    }

    /// Most positions that it may need.
    pub(super) fn most(&self) -> usize {
        self.job.prompt.len() + self.limit
    }

    /// Positions of its slot that its submitted steps write.
    pub(super) fn written(&self) -> usize {
        if self.answers { self.job.prompt.len() - 1 + self.submitted } else { 0 }
    }

    pub(super) fn is_filling(&self) -> bool {
        !self.answers && self.finish.is_none()
    }
}

/// The results of a submitted step that the host has not read yet: tokens, and scores if any row asks for them.
type Reads = Vec<PendingValues>;

/// The step that is laid out for the current answers.
struct LaidOut {
    step: Rc<Step>,
    /// The job of each row of the step; rows beyond them repeat the first.
    jobs: Vec<JobId>,
    /// The version of the cache's table that the step has.
    table: u64,
}

/// The jobs of an engine.
#[derive(Default)]
pub(super) struct Jobs {
    last_id: JobId,
    pub(super) waiting: VecDeque<(JobId, Job)>,
    /// Jobs that gave up their slots.
    pub(super) parked: Vec<Parked>,
    pub(super) preemptions: u64,
    pub(super) rows: Vec<Row>,
    laid_out: Option<LaidOut>,
    /// The job of each row of the samplers on the device.
    sampled: Vec<JobId>,
    in_flight: VecDeque<Reads>,
}

impl Jobs {
    pub(super) fn row(&mut self, id: JobId) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.id == id)
    }

    /// Whether a job uses an adapter.
    pub(super) fn use_adapter(&self, name: &str) -> bool {
        let begun = self.rows.iter().chain(self.parked.iter().map(|parked| &parked.row)).map(|row| &row.job);
        let jobs = begun.chain(self.waiting.iter().map(|(_, job)| job));
        jobs.filter_map(|job| job.adapter.as_deref()).any(|used| used == name)
    }

    /// Notes a submitted run of the step that is laid out.
    pub(super) fn submitted(&mut self, reads: Reads) {
        self.in_flight.push_back(reads);
        let laid_out = self.laid_out.as_ref().map(|laid_out| laid_out.jobs.as_slice()).unwrap_or_default();
        self.rows.iter_mut().filter(|row| laid_out.contains(&row.id)).for_each(|row| row.submitted += 1);
    }

    /// Whether a row is part of the step that is laid out.
    pub(super) fn is_laid_out(&self, id: JobId) -> bool {
        self.laid_out.as_ref().is_some_and(|laid_out| laid_out.jobs.contains(&id))
    }
}

impl Engine {
    /// Checks that a prompt can be answered.
    ///
    /// # Errors
    /// It is empty, longer than the context, or has tokens outside the vocabulary.
    pub fn check_prompt(&self, prompt: &[u32]) -> Result<(), GenerateError> {
        self.check(prompt)?;
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if prompt.len() >= self.context() {
            return Err(GenerateError::PromptTooLong { prompt: prompt.len(), context: self.context() });
        }
        Ok(())
    }

    /// As [`Engine::check_prompt`], and that the biases leave a token.
    pub(super) fn check_job(
        &self,
        prompt: &[u32],
        bias: &[(u32, f32)],
        adapter: Option<&str>,
    ) -> Result<(), GenerateError> {
        self.check_prompt(prompt)?;
        if let Some(name) = adapter.filter(|name| !self.loaded.contains(*name)) {
            return Err(GenerateError::NoAdapter(name.to_string()));
        }
        refuse_all_banned(bias, self.decoder.sizes().vocab_size)
    }

    /// Adds a job at the end of the queue. Jobs may be added, and removed, between any two calls of
    /// [`Engine::advance`]. Numbers of jobs count up by one.
    ///
    /// # Errors
    /// As [`Engine::check_prompt`], the biases ban every token, the job's adapter is not loaded, or it asks for more than
    /// [`MOST_LIKELY`] of the most likely tokens.
    pub fn add(&mut self, job: Job) -> Result<JobId, GenerateError> {
        if let Some(got) = job.scores.max(job.prompt_scores).filter(|&got| got > MOST_LIKELY) {
            return Err(GenerateError::Scores { got, most: MOST_LIKELY });
        }
        self.check_job(&job.prompt, &job.bias, job.adapter.as_deref())?;
        self.jobs.last_id += 1;
        self.jobs.waiting.push_back((self.jobs.last_id, job));
        Ok(self.jobs.last_id)
    }

    /// Cancels a job. One in the queue has no further events; a running one ends with [`FinishReason::Stopped`] in the next
    /// round, and its row is free then. Returns whether there was such a job.
    pub fn cancel(&mut self, id: JobId) -> bool {
        let waiting = self.jobs.waiting.len();
        self.jobs.waiting.retain(|(job, _)| *job != id);
        let parked = self.jobs.parked.iter_mut().map(|parked| &mut parked.row);
        if let Some(row) = self.jobs.rows.iter_mut().chain(parked).find(|row| row.id == id) {
            row.finish = Some(FinishReason::Stopped);
            return true;
        }
        self.jobs.waiting.len() != waiting
    }

    /// The numbers of jobs that have begun, and of jobs in the queue.
    pub fn load(&self) -> (usize, usize) {
        (self.jobs.rows.len() + self.jobs.parked.len(), self.jobs.waiting.len())
    }

    /// Removes all jobs. What their submitted steps wrote is not reused.
    pub(super) fn remove_all(&mut self) {
        for row in &self.jobs.rows {
            self.cached[row.slot].clear();
        }
        let Jobs { last_id, preemptions, .. } = self.jobs;
        self.jobs = Jobs { last_id, preemptions, ..Jobs::default() };
    }

    /// Goes on by one round: ended jobs leave, waiting ones take their slots, one piece of a prompt is computed, and
    /// every answer gets its next token, where that is possible in the same step. Returns whether any job is left.
    ///
    /// # Errors
    /// The device fails; all jobs are removed then, without events, and the cache is empty.
    pub async fn advance(&mut self, on_event: OnEvent<'_>) -> Result<bool, GenerateError> {
        let result = self.round(on_event).await;
        if result.is_err() {
            self.remove_all();
            self.reset();
        }
        result
    }

    async fn round(&mut self, on_event: OnEvent<'_>) -> Result<bool, GenerateError> {
        self.pause().await;
        self.retire(on_event).await?;
        self.end_parked(on_event);
        self.admit_waiting(on_event)?;
        self.make_room(on_event).await?;
        let interleaves = self.sizes.interleaves();
        if self.control.is_stopped() {
            self.jobs
                .rows
                .iter_mut()
                .filter(|row| row.is_filling())
                .for_each(|row| row.finish = Some(FinishReason::Stopped));
        }
        let mut served = Vec::new();
        while let Some(index) = self.jobs.rows.iter().position(Row::is_filling) {
            served = self.fill(index, on_event).await?;
            if interleaves {
                break;
            }
            self.pause().await;
            if self.control.is_stopped() {
                return Ok(true);
            }
        }
        // Without pieces in between, an answer that ended makes room for the next prompt first.
        let all_answer = self.jobs.rows.iter().all(|row| row.answers && row.finish.is_none());
        if interleaves || all_answer {
            self.decode(&served, on_event).await?;
        }
        Ok(self.load() != (0, 0))
    }

    /// Takes the rows of ended jobs away, once no submitted step writes to their slots any more.
    pub(super) async fn retire(&mut self, on_event: OnEvent<'_>) -> Result<(), GenerateError> {
        if self.jobs.rows.iter().all(|row| row.finish.is_none()) {
            return Ok(());
        }
        self.drain(on_event).await?;
        for row in self.jobs.rows.extract_if(.., |row| row.finish.is_some()) {
            if row.answers {
                let read = row.written().min(row.tokens.len());
                self.cached[row.slot] = row.tokens[..read].to_vec();
                self.written[row.slot] = self.written[row.slot].max(row.written());
            }
            self.cache.blocks_mut().truncate(row.slot, self.cached[row.slot].len());
            let finish = row.finish.unwrap_or(FinishReason::Length);
            let _ = on_event(row.id, Event::Ended(Usage { finish, ..row.usage }));
        }
        Ok(())
    }

    /// Assigns a job a free slot.
    pub(super) fn admit(&mut self, id: JobId, job: Job, on_event: OnEvent<'_>) -> Result<(), GenerateError> {
        let (slot, cached_tokens) = self.take_slot(id, &job)?;
        // What is missing is made room for before the next step.
        let _enough = self.reserve(slot, job.prompt.len());
        let room = self.context() - job.prompt.len();
        let finish = self.control.is_stopped().then_some(FinishReason::Stopped);
        let usage = Usage {
            prompt_tokens: job.prompt.len(),
            cached_tokens,
            generated_tokens: 0,
            accepted_tokens: 0,
            rejected_tokens: 0,
            finish: FinishReason::Length,
            prefill_seconds: 0.0,
            decode_seconds: 0.0,
        };
        let limit = job.max_tokens.min(room);
        let tokens = job.prompt.clone();
        let start = Instant::now();
        let mut row = Row { id, slot, job, tokens, answers: false, submitted: 0, limit, usage, finish, start };
        if on_event(id, Event::Started { cached_tokens }).is_break() {
            row.finish = Some(FinishReason::Stopped);
        }
        self.jobs.rows.push(row);
        Ok(())
    }

    /// Reads all submitted steps. The next step is laid out anew.
    pub(super) async fn drain(&mut self, on_event: OnEvent<'_>) -> Result<(), GenerateError> {
        while let Some(reads) = self.jobs.in_flight.pop_front() {
            self.take(reads, on_event).await?;
        }
        self.jobs.laid_out = None;
        Ok(())
    }

    /// Goes on with all answers but those that were `served` in this round. They share a step, or, where that is not
    /// possible, those with one loaded adapter do: then the steps of several adapters take turns, and none is submitted
    /// ahead of the host.
    async fn decode(&mut self, served: &[JobId], on_event: OnEvent<'_>) -> Result<(), GenerateError> {
        // For each adapter, whether any of its answers still needs a step.
        let mut adapters: Vec<(Option<String>, bool)> = Vec::new();
        for row in self.jobs.rows.iter().filter(|row| row.answers && row.finish.is_none()) {
            let waits = !served.contains(&row.id);
            match adapters.iter_mut().find(|(adapter, _)| *adapter == row.job.adapter) {
                Some((_, any)) => *any |= waits,
                None => adapters.push((row.job.adapter.clone(), waits)),
            }
        }
        let alone = adapters.len() < 2;
        if !alone && self.share_steps() {
            return self.decode_with(&StepAdapters::Each, true, served, on_event).await;
        }
        for (adapter, _) in adapters.into_iter().filter(|(_, waits)| *waits) {
            let mut verified = self.speculate(adapter.as_deref(), on_event).await?;
            verified.extend_from_slice(served);
            self.decode_with(&StepAdapters::Same(adapter), alone, &verified, on_event).await?;
            if !alone {
                self.drain(on_event).await?;
            }
        }
        Ok(())
    }

    /// Submits steps of the answers with these adapters, but for those that have their next token already, and reads
    /// the oldest.
    async fn decode_with(
        &mut self,
        adapters: &StepAdapters,
        alone: bool,
        served: &[JobId],
        on_event: OnEvent<'_>,
    ) -> Result<(), GenerateError> {
        let answering = |row: &&Row| {
            row.answers && row.finish.is_none() && adapters.take(&row.job.adapter) && !served.contains(&row.id)
        };
        if self.jobs.laid_out.is_none() {
            let answers = self.jobs.rows.iter().filter(answering).count();
            if answers == 0 {
                return Ok(());
            }
            let scored = self.jobs.rows.iter().filter(answering).any(|row| row.job.scores.is_some());
            let size = self.sizes.row_count(answers, self.sequences(), self.cache.is_recurrent());
            let kind = if scored { StepKind::Scored(size) } else { StepKind::Decode(size) };
            let step = self.prepared_step(kind, adapters).await?;
            let jobs = self.jobs.rows.iter().filter(answering).map(|row| row.id).collect();
            self.lay_out(step, jobs);
            self.write_tokens();
        }
        let Some(LaidOut { step, .. }) = &self.jobs.laid_out else { return Ok(()) };
        let step = step.clone();
        // From here on every row's slot also holds what the submitted steps will write. A recurrent state cannot be
        // rolled back when the answer turns out to have ended; a model on several devices transfers activations
        // through the host, which must wait for each step anyway; and beside a prompt every step waits for a piece.
        let filling = self.jobs.rows.iter().any(Row::is_filling);
        // A grammar must know the last token before the next step.
        let constrained = self.jobs.rows.iter().any(|row| row.answers && row.job.grammar.is_some());
        let speculates = match adapters {
            StepAdapters::Same(adapter) => self.may_speculate(adapter.as_deref()),
            StepAdapters::Each => false,
        };
        let waits = self.cache.is_recurrent() || step.is_split() || step.is_on_cpu() || filling || constrained;
        let waits = waits || speculates || !alone;
        let ahead = if waits { 1 } else { STEPS_AHEAD };
        loop {
            if constrained && self.jobs.in_flight.is_empty() {
                self.constrain(on_event);
            }
            let rows: Vec<&Row> = self.jobs.rows.iter().filter(|row| self.jobs.is_laid_out(row.id)).collect();
            let ended = rows.iter().any(|row| row.finish.is_some() || row.steps_left() == 0);
            if ended || self.jobs.in_flight.len() >= ahead || !self.reserve_laid_out() {
                break;
            }
            let rows: Vec<&Row> = self.jobs.rows.iter().filter(|row| self.jobs.is_laid_out(row.id)).collect();
            let length = rows.iter().map(|row| row.job.prompt.len() + row.submitted).max().unwrap_or(1);
            if step.is_split() {
                self.write_tokens();
            }
            let reads = step.submit_reading(length).await?;
            self.jobs.submitted(reads);
        }
        match self.jobs.in_flight.pop_front() {
            Some(reads) => self.take(reads, on_event).await,
            None => Ok(()),
        }
    }

    /// Reserves what the next run of the laid-out step needs, and writes the table if it has changed: places that
    /// submitted runs read stay as they are.
    fn reserve_laid_out(&mut self) -> bool {
        let jobs = self.jobs.laid_out.as_ref().map(|laid_out| laid_out.jobs.clone()).unwrap_or_default();
        if !self.reserve_next(|id| jobs.contains(&id)) {
            return false;
        }
        let version = self.cache.blocks().version();
        if let Some(laid_out) = self.jobs.laid_out.as_mut().filter(|laid_out| laid_out.table != version) {
            laid_out.table = version;
            laid_out.step.write_table(&self.cache.table());
        }
        true
    }

    /// Reads the results of one step.
    async fn take(&mut self, reads: Reads, on_event: OnEvent<'_>) -> Result<(), GenerateError> {
        let mut reads = reads.into_iter();
        let Some(tokens) = reads.next() else { return Ok(()) };
        let tokens = tokens.wait().await?;
        let scores = match (reads.next(), reads.next()) {
            (Some(values), Some(ids)) => Some(Scores { values: values.wait().await?, ids: ids.wait().await? }),
            _ => None,
        };
        let vocabulary = self.decoder.sizes().vocab_size;
        let jobs = self.jobs.laid_out.as_ref().map(|laid_out| laid_out.jobs.clone()).unwrap_or_default();
        for (number, (id, &token)) in jobs.into_iter().zip(tokens.u32()).enumerate() {
            let Some(row) = self.jobs.row(id).filter(|row| row.finish.is_none()) else { continue };
            let scored = row.job.scores.zip(scores.as_ref());
            let score = || scored.map(|(top, scores)| scores.of_row(number, token, top.min(vocabulary)));
            row.take(token, score, &self.control, on_event);
        }
        Ok(())
    }

    /// Lays a step out for these jobs, and writes their samplers. No step may be in flight.
    pub(super) fn lay_out(&mut self, step: Rc<Step>, jobs: Vec<JobId>) {
        self.jobs.laid_out = Some(LaidOut { step, jobs, table: self.cache.blocks().version() });
        let ids: Vec<JobId> = self.laid_rows().into_iter().flat_map(|(_, rows)| rows).map(|row| row.id).collect();
        if let Some((step, rows)) = self.laid_rows() {
            step.write_wanted(rows.iter().map(|row| row.job.scores));
        }
        // The device itself counts the tokens that it samples.
        if ids != self.jobs.sampled {
            self.write_samplers();
            self.jobs.sampled = ids;
        }
    }

    /// The rows of the step that is laid out; those beyond the jobs repeat the first.
    pub(super) fn laid_rows(&self) -> Option<(&Rc<Step>, Vec<&Row>)> {
        let LaidOut { step, jobs, .. } = self.jobs.laid_out.as_ref()?;
        let mut rows: Vec<&Row> =
            jobs.iter().filter_map(|id| self.jobs.rows.iter().find(|row| row.id == *id)).collect();
        // A repeated row computes and writes exactly what the first one does, also to the cache.
        let first = *rows.first()?;
        rows.resize(step.sampled(), first);
        Some((step, rows))
    }

    /// Writes each row's next token, position and slot. No step may be in flight.
    fn write_tokens(&self) {
        let Some((step, rows)) = self.laid_rows() else { return };
        let next = rows.iter().map(|row| {
            let position = row.tokens.len() - 1;
            (row.tokens[position], position, row.slot * self.context())
        });
        step.write_each(&next.collect::<Vec<_>>(), &self.cache.table());
        let numbers: Vec<_> = rows.iter().map(|row| self.adapter_number(&row.job.adapter)).collect();
        step.write_adapters(&numbers, self.loaded.len());
    }

    /// Writes each row's sampler. No step may be in flight.
    fn write_samplers(&self) {
        for (number, row) in self.laid_rows().into_iter().flat_map(|(_, rows)| rows).enumerate() {
            let Job { settings, bias, grammar, .. } = &row.job;
            let settings = SampleSettings { biased: !bias.is_empty() || grammar.is_some(), ..*settings };
            self.sampling.write(self.head_gpu.as_ref(), number, &settings, bias, &row.tokens);
        }
    }
}
