//! Runs a decoder: prompts in chunks, tokens one after another, several steps ahead of the host.

mod adapters;
mod control;
mod step;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
#[cfg(not(target_arch = "wasm32"))]
use std::time::Instant;

#[cfg(target_arch = "wasm32")]
use web_time::Instant;

use bayan_gpu::{Gpu, KernelTime, PendingRead, ReadRequest};
use bayan_models::{Cache, CacheFormat, CacheShape, Decoder, OnProgress, Opening};
use bayan_tensor::ops::{HISTORY, SampleSettings};
use bayan_tensor::{Cost, ELEMENT_BYTES, Measured, Tuning, Values, measure_rows};
use bayan_weights::{Checkpoint, Policy};

use crate::GenerateError;
pub use control::Control;
use control::PrefillPace;
use step::{Sampling, Step, StepKind};

/// How to open an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Positions of the context; `None`: the model's own limit, at most [`DEFAULT_CONTEXT`].
    pub context: Option<usize>,
    /// Element format of the key-value cache.
    pub cache: CacheFormat,
    /// Quantize dense weights as they are loaded.
    pub policy: Option<Policy>,
    /// Tokens of a prompt that one submission takes; `None`: chosen for the device, and in a browser by the time that submissions take.
    pub prefill_chunk: Option<usize>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions { context: None, cache: CacheFormat::F16, policy: None, prefill_chunk: None }
    }
}

/// Context when neither the user nor a smaller model says otherwise: a cache of this length fits beside every model that fits.
pub const DEFAULT_CONTEXT: usize = 4096;

/// Steps that may be under way before the host looks at the oldest one's token.
const STEPS_AHEAD: usize = 3;

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token, which is not part of the answer.
    Stop,
    /// The asked number of tokens.
    Length,
    /// The context is full.
    ContextFull,
    /// The caller stopped it.
    Stopped,
}

/// What one generation did.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens that were in the cache already.
    pub cached_tokens: usize,
    /// Tokens generated, without the stop token.
    pub generated_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
    /// Until the first token was known.
    pub prefill_seconds: f64,
    /// From the first token to the last.
    pub decode_seconds: f64,
}

/// A decoder with its cache on a device.
pub struct Engine {
    gpu: Gpu,
    decoder: Box<dyn Decoder>,
    cache: Cache,
    tuning: Tuning,
    sampling: Sampling,
    steps: HashMap<StepKind, Rc<Step>>,
    /// The tokens whose keys and values stand in the cache.
    cached: Vec<u32>,
    pace: PrefillPace,
    control: Arc<Control>,
    /// Names of the attached adapters.
    adapters: Vec<String>,
}

impl Engine {
    /// Loads a checkpoint onto the device.
    ///
    /// # Errors
    /// A checkpoint or a device that does not fit.
    pub async fn open(checkpoint: &Checkpoint, gpu: &Gpu, options: &EngineOptions, on_progress: OnProgress<'_>) -> Result<Engine, GenerateError> {
        let sizes = bayan_models::sizes(checkpoint)?;
        let context = options.context.unwrap_or_else(|| sizes.max_position_embeddings.min(DEFAULT_CONTEXT)).max(2);
        if context > sizes.max_position_embeddings {
            tracing::warn!("a context of {context} is longer than the {} positions this model was made for", sizes.max_position_embeddings);
        }
        let decoder = bayan_models::open(checkpoint, Some(gpu), &Opening { context }, options.policy.clone(), on_progress).await?;
        let shape = CacheShape { sequences: 1, context, format: options.cache };
        let cache = Cache::new(Some(gpu), shape, &decoder.cache_widths())?;
        let sampling = Sampling::new(gpu, decoder.sizes().vocab_size)?;
        let pace = PrefillPace::new(options.prefill_chunk, gpu.capabilities());
        let tuning = Tuning::defaults(gpu.capabilities());
        let control = Arc::default();
        Ok(Engine { gpu: gpu.clone(), decoder, cache, tuning, sampling, steps: HashMap::new(), cached: Vec::new(), pace, control, adapters: Vec::new() })
    }

    /// A handle on the running generation: how far it is, and how to end it.
    pub fn control(&self) -> Arc<Control> {
        self.control.clone()
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The kernel shapes in use.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Uses other kernel shapes from the next step on.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
        self.steps.clear();
    }

    /// Measures the kernel shapes on this model's matrices and uses the fastest. `now_ms` is a clock.
    ///
    /// # Errors
    /// The device fails.
    pub async fn autotune(&mut self, now_ms: &dyn Fn() -> f64) -> Result<Vec<Measured>, GenerateError> {
        let mut seen = std::collections::HashSet::new();
        let matrices: Vec<_> = self.decoder.matrices().into_iter().filter(|m| seen.insert(std::sync::Arc::as_ptr(m))).cloned().collect();
        let measured = measure_rows(&self.gpu, &matrices, now_ms).await?;
        if let Some(best) = measured.first() {
            self.set_tuning(Tuning { rows: Some(best.shape), ..self.tuning.clone() });
        }
        Ok(measured)
    }

    /// The model.
    pub fn decoder(&self) -> &dyn Decoder {
        self.decoder.as_ref()
    }

    /// Positions of the context.
    pub fn context(&self) -> usize {
        self.cache.shape.context
    }

    /// Bytes of the key-value cache.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.size_bytes()
    }

    /// Tokens in the cache.
    pub fn cached_tokens(&self) -> usize {
        self.cached.len()
    }

    /// Forgets the cached tokens.
    pub fn reset(&mut self) {
        self.cached.clear();
    }

    /// What decoding one token costs.
    ///
    /// # Errors
    /// The step could not be prepared.
    pub fn decode_cost(&mut self) -> Result<Cost, GenerateError> {
        Ok(self.step(StepKind::Decode)?.plan.cost())
    }

    /// Time of each kernel of one decoded token.
    ///
    /// # Errors
    /// The device has no timestamps, or fails.
    pub async fn profile_decode(&mut self) -> Result<Vec<KernelTime>, GenerateError> {
        let step = self.step(StepKind::Decode)?;
        let position = self.cached.len().min(self.context() - 1);
        step.write(&self.gpu, &[0], position);
        Ok(step.plan.profile(&self.gpu, position + 1).await?)
    }

    /// Time of each kernel of a prompt of this many tokens.
    ///
    /// # Errors
    /// The device has no timestamps, or fails.
    pub async fn profile_prefill(&mut self, tokens: usize) -> Result<Vec<KernelTime>, GenerateError> {
        let step = self.step(StepKind::Prefill(tokens))?;
        step.write(&self.gpu, &vec![0; tokens], 0);
        self.cached.clear();
        Ok(step.plan.profile(&self.gpu, tokens).await?)
    }

    fn step(&mut self, kind: StepKind) -> Result<Rc<Step>, GenerateError> {
        if let Some(step) = self.steps.get(&kind) {
            return Ok(step.clone());
        }
        // Odd lengths come from the ends of prompts; keeping a few plans of them is enough.
        if self.steps.len() > 12 {
            self.steps.retain(|kind, _| matches!(kind, StepKind::Decode) || *kind == StepKind::Prefill(self.pace.chunk()));
        }
        let step = Rc::new(Step::new(&self.gpu, self.decoder.as_ref(), &self.cache, &self.sampling, kind, &self.tuning)?);
        self.steps.insert(kind, step.clone());
        Ok(step)
    }

    fn check(&self, ids: &[u32]) -> Result<(), GenerateError> {
        let vocabulary = self.decoder.sizes().vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(&id) => Err(GenerateError::Token { id, vocabulary }),
            None => Ok(()),
        }
    }

    /// Logits \[V\] after each of the prompt's tokens, or only after the last one. The cache is started anew.
    ///
    /// # Errors
    /// A prompt that does not fit, or a device that fails.
    pub async fn logits(&mut self, ids: &[u32], all: bool) -> Result<Vec<Vec<f32>>, GenerateError> {
        self.check(ids)?;
        if ids.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if ids.len() > self.context() {
            return Err(GenerateError::PromptTooLong { prompt: ids.len(), context: self.context() });
        }
        self.cached.clear();
        let vocabulary = self.decoder.sizes().vocab_size;
        let mut rows = Vec::new();
        for chunk in ids.chunks(self.pace.chunk().min(64)) {
            let step = self.step(StepKind::Logits(chunk.len()))?;
            step.write(&self.gpu, chunk, self.cached.len());
            self.cached.extend_from_slice(chunk);
            let reads = step.plan.submit(&self.gpu, self.cached.len(), &[step.plan.read_request(step.logits)]);
            for read in reads {
                let values = Values::from_bytes(&read.wait().await?, bayan_tensor::Dtype::F32);
                rows.extend(values.f32().chunks_exact(vocabulary).map(<[f32]>::to_vec));
            }
        }
        Ok(if all { rows } else { rows.split_off(rows.len().saturating_sub(1)) })
    }

    /// Brings the cache to hold exactly the first `ids.len() - 1` tokens of the prompt, reusing what it has in common with it; or fewer,
    /// when it is told to stop.
    async fn prefill(&mut self, ids: &[u32]) -> Result<usize, GenerateError> {
        let wanted = &ids[..ids.len() - 1];
        let common = self.cached.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        self.cached.truncate(common);
        while self.cached.len() < wanted.len() && !self.control.is_stopped() {
            let left = &wanted[self.cached.len()..];
            let chunk = &left[..left.len().min(self.pace.chunk())];
            let kind = StepKind::Prefill(chunk.len());
            let prepared = self.steps.contains_key(&kind);
            let step = self.step(kind)?;
            if !prepared {
                // Compiling kernels is no measure of the device's speed.
                self.gpu.flush().await?;
            }
            let start = Instant::now();
            step.write(&self.gpu, chunk, self.cached.len());
            step.plan.submit(&self.gpu, self.cached.len() + chunk.len(), &[]);
            self.cached.extend_from_slice(chunk);
            // One chunk at a time, so that a slow device is not given seconds of work that cannot be stopped.
            self.gpu.flush().await?;
            self.pace.learn(chunk.len(), start.elapsed().as_secs_f64());
        }
        Ok(common)
    }

    /// Continues a prompt. `on_token` gets each new token as it is known and may stop; a stop token ends the answer and is not handed on.
    ///
    /// # Errors
    /// A prompt that does not fit, or a device that fails. After an error the cache is empty.
    pub async fn generate(
        &mut self,
        prompt: &[u32],
        settings: &SampleSettings,
        bias: &[(u32, f32)],
        stop: &[u32],
        max_tokens: usize,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Usage, GenerateError> {
        self.check(prompt)?;
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if prompt.len() >= self.context() {
            return Err(GenerateError::PromptTooLong { prompt: prompt.len(), context: self.context() });
        }
        self.control.start();
        let result = self.run(prompt, settings, bias, stop, max_tokens, on_token).await;
        if result.is_err() {
            self.cached.clear();
        }
        result
    }

    async fn run(
        &mut self,
        prompt: &[u32],
        settings: &SampleSettings,
        bias: &[(u32, f32)],
        stop: &[u32],
        max_tokens: usize,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Usage, GenerateError> {
        let start = Instant::now();
        let cached_tokens = self.prefill(prompt).await?;
        let (prefill_seconds, decode_seconds) = (start.elapsed().as_secs_f64(), 0.0);
        let mut usage = Usage { prompt_tokens: prompt.len(), cached_tokens, generated_tokens: 0, finish: Finish::Length, prefill_seconds, decode_seconds };
        if self.control.is_stopped() {
            return Ok(Usage { finish: Finish::Stopped, ..usage });
        }
        if max_tokens == 0 {
            return Ok(usage);
        }
        self.sampling.write(&self.gpu, settings, bias, prompt);
        let step = self.step(StepKind::Decode)?;
        step.write(&self.gpu, &prompt[prompt.len() - 1..], prompt.len() - 1);
        self.cached.push(prompt[prompt.len() - 1]);
        let room = self.context() - prompt.len();
        let limit = max_tokens.min(room);
        let mut under_way: std::collections::VecDeque<PendingRead> = std::collections::VecDeque::new();
        let mut submitted = 0;
        while usage.generated_tokens < limit {
            while submitted < limit && under_way.len() < STEPS_AHEAD {
                under_way.extend(self.submit_decode(&step, prompt.len() + submitted));
                submitted += 1;
            }
            let Some(read) = under_way.pop_front() else { break };
            let token = Values::from_bytes(&read.wait().await?, bayan_tensor::Dtype::U32).u32().first().copied().unwrap_or(0);
            match usage.generated_tokens {
                0 => usage.prefill_seconds = start.elapsed().as_secs_f64(),
                _ => usage.decode_seconds = start.elapsed().as_secs_f64() - usage.prefill_seconds,
            }
            if stop.contains(&token) || self.control.is_stopped() {
                usage.finish = if self.control.is_stopped() { Finish::Stopped } else { Finish::Stop };
                break;
            }
            usage.generated_tokens += 1;
            self.control.count(usage.generated_tokens);
            if on_token(token).is_break() {
                usage.finish = Finish::Stopped;
                break;
            }
            // The step that reads this token is under way or was the last one; its keys and values count from here on.
            if usage.generated_tokens < limit {
                self.cached.push(token);
            }
        }
        if usage.finish == Finish::Length && limit == room && max_tokens > room {
            usage.finish = Finish::ContextFull;
        }
        for read in under_way {
            read.wait().await?;
        }
        Ok(usage)
    }

    /// Submits the step whose token will be number `length` of the sequence.
    fn submit_decode(&self, step: &Step, length: usize) -> Vec<PendingRead> {
        let slot = (length - 1) % HISTORY;
        let read = ReadRequest { buffer: self.sampling.states.history.buffer().clone(), offset_bytes: slot as u64 * ELEMENT_BYTES, size_bytes: ELEMENT_BYTES };
        step.plan.submit(&self.gpu, length, &[read])
    }
}
