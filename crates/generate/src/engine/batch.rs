//! Several prompts at once: each has a slot in the cache, and a decoding step computes one token of every unfinished
//! answer.
//!
//! A step reads every weight once for all its sequences. A single chat is a batch of one request, without code of its
//! own. When a sequence ends, the submitted steps are awaited and the rows are laid out again. Rejected: masking the
//! ended row inside the step, because it would keep costing as much as an active one.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::rc::Rc;
#[cfg(not(target_arch = "wasm32"))]
use std::time::Instant;

#[cfg(target_arch = "wasm32")]
use web_time::Instant;

use bayan_gpu::PendingRead;
use bayan_tensor::ops::SampleSettings;
use bayan_tensor::{Dtype, Values};

use super::step::{Step, StepKind, refuse_all_banned};
use super::{Engine, FinishReason, Usage};
use crate::GenerateError;

/// Most decoding steps that may be submitted before the host reads the tokens of the oldest.
const STEPS_AHEAD: usize = 3;

/// A prompt to continue.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its tokens.
    pub prompt: &'a [u32],
    /// Sampling settings.
    pub settings: SampleSettings,
    /// Biases added to the logits of these tokens.
    pub bias: &'a [(u32, f32)],
    /// Tokens that end the answer and are not part of it.
    pub stop: &'a [u32],
    /// Most new tokens.
    pub max_tokens: usize,
}

/// The state of an unfinished answer.
struct Row<'a> {
    /// The number of its request.
    index: usize,
    /// Its slot in the cache.
    slot: usize,
    request: &'a Request<'a>,
    /// The prompt and the tokens generated so far.
    tokens: Vec<u32>,
    /// Submitted steps: this many tokens, from the prompt's last one on, are in the cache.
    submitted: usize,
    /// The number of new tokens that request and context allow.
    limit: usize,
    usage: Usage,
    finish: Option<FinishReason>,
    start: Instant,
}

impl Row<'_> {
    fn accept(&mut self, token: u32, stopped: bool) -> bool {
        let elapsed = self.start.elapsed().as_secs_f64();
        match self.usage.generated_tokens {
            0 => self.usage.prefill_seconds = elapsed,
            _ => self.usage.decode_seconds = elapsed - self.usage.prefill_seconds,
        }
        if self.request.stop.contains(&token) || stopped {
            self.finish = Some(if stopped { FinishReason::Stopped } else { FinishReason::Stop });
            return false;
        }
        self.usage.generated_tokens += 1;
        self.tokens.push(token);
        if self.usage.generated_tokens >= self.limit {
            self.finish = Some(if self.limit < self.request.max_tokens {
                FinishReason::ContextFull
            } else {
                FinishReason::Length
            });
        }
        true
    }

    /// Number of steps still to be submitted.
    fn steps_left(&self) -> usize {
        self.limit - self.submitted.min(self.limit)
    }
}

impl Engine {
    /// Continues several prompts, as many at a time as the engine has sequences; the others are queued. `on_token` is
    /// called with the number of the request and each new token, and may end that answer. The usages are returned in
    /// the order of the requests.
    ///
    /// # Errors
    /// A prompt does not fit, or the device fails. After an error the cache is empty.
    pub async fn generate_many(
        &mut self,
        requests: &[Request<'_>],
        on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Usage>, GenerateError> {
        for request in requests {
            self.check(request.prompt)?;
            refuse_all_banned(request.bias, self.decoder.sizes().vocab_size)?;
            if request.prompt.is_empty() {
                return Err(GenerateError::EmptyPrompt);
            }
            if request.prompt.len() >= self.context() {
                return Err(GenerateError::PromptTooLong { prompt: request.prompt.len(), context: self.context() });
            }
        }
        self.control.start();
        let result = self.run(requests, on_token).await;
        if result.is_err() {
            self.reset();
        }
        result
    }

    async fn run(
        &mut self,
        requests: &[Request<'_>],
        on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Usage>, GenerateError> {
        let mut usages: Vec<Option<Usage>> = vec![None; requests.len()];
        let mut waiting: VecDeque<usize> = (0..requests.len()).collect();
        let mut rows: Vec<Row<'_>> = Vec::new();
        loop {
            while rows.len() < self.sequences() {
                let Some(index) = waiting.pop_front() else { break };
                rows.push(self.start_row(index, &requests[index], &rows).await?);
            }
            if rows.iter().all(|row| row.finish.is_none()) && !rows.is_empty() {
                self.decode(&mut rows, on_token).await?;
            }
            for row in rows.extract_if(.., |row| row.finish.is_some()) {
                let finish = row.finish.unwrap_or(FinishReason::Length);
                usages[row.index] = Some(Usage { finish, ..row.usage });
            }
            if rows.is_empty() && waiting.is_empty() {
                return Ok(usages.into_iter().flatten().collect());
            }
        }
    }

    /// Assigns a request the free slot with the longest common prefix, and computes the rest of the prompt into the
    /// cache.
    async fn start_row<'a>(
        &mut self,
        index: usize,
        request: &'a Request<'a>,
        rows: &[Row<'_>],
    ) -> Result<Row<'a>, GenerateError> {
        let start = Instant::now();
        let wanted = &request.prompt[..request.prompt.len() - 1];
        let common = |slot: usize| self.cached[slot].iter().zip(wanted).take_while(|(a, b)| a == b).count();
        let free = (0..self.sequences()).filter(|slot| rows.iter().all(|row| row.slot != *slot));
        let slot = free.max_by_key(|&slot| (common(slot), std::cmp::Reverse(slot))).unwrap_or(0);
        let cached_tokens = self.prefill(slot, wanted).await?;
        let room = self.context() - request.prompt.len();
        let finish = match (self.control.is_stopped(), request.max_tokens) {
            (true, _) => Some(FinishReason::Stopped),
            (false, 0) => Some(FinishReason::Length),
            _ => None,
        };
        let prompt_tokens = request.prompt.len();
        let prefill_seconds = start.elapsed().as_secs_f64();
        let usage = Usage {
            prompt_tokens,
            cached_tokens,
            generated_tokens: 0,
            finish: FinishReason::Length,
            prefill_seconds,
            decode_seconds: 0.0,
        };
        let limit = request.max_tokens.min(room);
        Ok(Row { index, slot, request, tokens: request.prompt.to_vec(), submitted: 0, limit, usage, finish, start })
    }

    /// Makes a slot of the cache hold exactly these tokens, reusing the common prefix; or fewer, when the generation is
    /// stopped.
    async fn prefill(&mut self, slot: usize, wanted: &[u32]) -> Result<usize, GenerateError> {
        let base = slot * self.context();
        let mut common = self.cached[slot].iter().zip(wanted).take_while(|(a, b)| a == b).count();
        if !self.cache.can_rewind(self.written[slot], common) {
            common = 0;
        }
        self.cached[slot].truncate(common);
        self.written[slot] = if common == 0 { 0 } else { self.written[slot] };
        while self.cached[slot].len() < wanted.len() && !self.control.is_stopped() {
            let at = self.cached[slot].len();
            let left = &wanted[at..];
            let chunk = &left[..left.len().min(self.chunks.chunk())];
            let kind = StepKind::Prefill(chunk.len());
            let prepared = self.steps.contains_key(&kind);
            let step = self.prepared_step(kind).await?;
            if !prepared {
                // The time of compiling kernels must not count as the device's speed.
                self.devices.flush().await?;
            }
            let start = Instant::now();
            step.write(chunk, at, base);
            // One chunk at a time, so that a slow device never has seconds of submitted work that cannot be stopped.
            step.run_prefill(at + chunk.len(), self.chunks.submissions()).await?;
            self.cached[slot].extend_from_slice(chunk);
            self.written[slot] = self.written[slot].max(at + chunk.len());
            self.chunks.adapt(chunk.len(), start.elapsed().as_secs_f64());
        }
        Ok(common)
    }

    /// Decodes until a row ends.
    async fn decode(
        &mut self,
        rows: &mut [Row<'_>],
        on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<(), GenerateError> {
        let step = self.prepared_step(StepKind::Decode(rows.len())).await?;
        self.write_rows(&step, rows);
        // From here on every row's slot also holds what the submitted steps will write.
        let mut in_flight: VecDeque<PendingRead> = VecDeque::new();
        // A recurrent state cannot be rolled back when the answer turns out to have ended; and a model on several
        // devices transfers activations through the host, which must wait for each step anyway.
        let ahead = if self.cache.is_recurrent() || step.is_split() { 1 } else { STEPS_AHEAD };
        loop {
            let ended = rows.iter().any(|row| row.finish.is_some());
            while !ended && in_flight.len() < ahead && rows.iter().all(|row| row.steps_left() > 0) {
                let length = rows.iter().map(|row| row.request.prompt.len() + row.submitted).max().unwrap_or(1);
                if step.is_split() {
                    self.write_tokens(&step, rows);
                }
                in_flight.extend(step.submit_sampling(length).await?);
                rows.iter_mut().for_each(|row| row.submitted += 1);
            }
            let Some(read) = in_flight.pop_front() else { break };
            let values = Values::from_bytes(&read.wait().await?, Dtype::U32);
            for (row, &token) in rows.iter_mut().zip(values.u32()).filter(|(row, _)| row.finish.is_none()) {
                if row.accept(token, self.control.is_stopped()) {
                    self.control.count(self.control.tokens() + 1);
                    if on_token(row.index, token).is_break() {
                        row.finish = Some(FinishReason::Stopped);
                    }
                }
            }
        }
        for row in rows {
            let read = (row.request.prompt.len() - 1 + row.submitted).min(row.tokens.len());
            self.cached[row.slot] = row.tokens[..read].to_vec();
            self.written[row.slot] = self.written[row.slot].max(row.request.prompt.len() - 1 + row.submitted);
        }
        Ok(())
    }

    /// Writes each row's next token, position, slot and sampler. No step may be in flight.
    fn write_rows(&self, step: &Rc<Step>, rows: &[Row<'_>]) {
        self.write_tokens(step, rows);
        for (number, row) in rows.iter().enumerate() {
            self.sampling.write(&self.head_gpu, number, &row.request.settings, row.request.bias, &row.tokens);
        }
    }

    fn write_tokens(&self, step: &Rc<Step>, rows: &[Row<'_>]) {
        let next = rows.iter().map(|row| {
            let position = row.tokens.len() - 1;
            (row.tokens[position], position, row.slot * self.context())
        });
        step.write_each(&next.collect::<Vec<_>>());
    }
}
