//! Runs a decoder, for one sequence or several: prompts in chunks, then one token per step, with several steps
//! submitted before the host reads the first result.

mod adapters;
mod batch;
mod blocks;
mod constrain;
mod control;
mod device_plan;
mod devices;
mod importance;
mod likelihood;
mod pause;
mod prefix;
mod profile;
mod prompt;
mod schedule;
mod score;
mod sizes;
mod speculate;
mod state;
mod step;
mod warm_up;

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use bayan_gpu::{Capabilities, Gpu};
use bayan_models::{Cache, CacheFormat, CacheShape, Decoder, LoadOptions, OnProgress, Sizes};
use bayan_tensor::ops::SampleSettings;
use bayan_tensor::{Cpu, Measured, Tuning, measure_rows};
use bayan_weights::{Checkpoint, Policy};

use crate::GenerateError;
use adapters::StepAdapters;
pub use batch::{Event, Job, JobId, OnEvent, Request};
pub use control::Control;
use control::PrefillChunks;
use devices::Devices;
pub use likelihood::{Likelihood, ScoredText};
pub use pause::Pause;
use schedule::Jobs;
pub use score::{TokenScore, log_sum, most_likely};
pub use sizes::StepSizes;
pub use speculate::MOST_PROPOSALS;
use speculate::Speculation;
pub use state::StateError;
pub use step::LARGEST_BIAS;
use step::{Sampling, Step, StepKind, StepSpec};

/// Options of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Positions of the context of each sequence; `None`: the model's own limit, at most [`DEFAULT_CONTEXT`].
    pub context: Option<usize>,
    /// Sequences that are decoded together.
    pub sequences: usize,
    /// Further slots of the cache, which keep tokens of answers that ended.
    pub kept: usize,
    /// Element format of the key-value cache.
    pub cache: CacheFormat,
    /// Positions in the cache for all slots together: at least one context, and no more than a context for each slot,
    /// which is what `None` gives.
    pub cache_positions: Option<usize>,
    /// Quantize dense weights as they are loaded.
    pub policy: Option<Policy>,
    /// Number of layers on the device; the others stay in host memory and are uploaded for every step. `None`: all.
    pub gpu_layers: Option<usize>,
    /// Tokens of a prompt in one submission; `None`: chosen for the device, in a browser by the measured time of
    /// submissions.
    pub prefill_chunk: Option<usize>,
    /// How many tokens a step has. With [`StepSizes::Invariant`] the context is a multiple of the chunk.
    pub sizes: StepSizes,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            context: None,
            sequences: 1,
            kept: 0,
            cache: CacheFormat::F16,
            cache_positions: None,
            policy: None,
            gpu_layers: None,
            prefill_chunk: None,
            sizes: StepSizes::Exact,
        }
    }
}

/// Context when the user sets none and the model allows more: a cache of this length fits beside every model that fits.
pub const DEFAULT_CONTEXT: usize = 4096;

/// Most tokens of one step when the logits after all of them are computed.
const LOGITS_CHUNK: usize = 64;

/// Most tokens of one sequence in one step.
fn step_tokens(chunks: &PrefillChunks) -> usize {
    chunks.max_chunk().max(LOGITS_CHUNK)
}

/// The shape of an engine's cache for one sequence on such a device, for computing its size in advance.
pub fn cache_shape(context: usize, format: CacheFormat, capabilities: &Capabilities) -> CacheShape {
    let step = Some(step_tokens(&PrefillChunks::new(None, capabilities)));
    CacheShape { sequences: 1, context, format, step, positions: Some(context) }
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, which is not part of the answer.
    Stop,
    /// The requested number of tokens was reached.
    Length,
    /// The context is full.
    ContextFull,
    /// The caller stopped it.
    Stopped,
    /// The grammar that the answer follows failed; [`Event::Fault`] says how. Other answers are not affected.
    GrammarFault,
}

/// Statistics of one generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that were in the cache already.
    pub cached_tokens: usize,
    /// Generated tokens, without the stop token.
    pub generated_tokens: usize,
    /// Those of them that speculative decoding had proposed.
    pub accepted_tokens: usize,
    /// Tokens that speculative decoding had proposed and that are not part of the answer.
    pub rejected_tokens: usize,
    /// Why the generation ended.
    pub finish: FinishReason,
    /// Time until the first token was known.
    pub prefill_seconds: f64,
    /// Time from the first token to the last.
    pub decode_seconds: f64,
}

/// A decoder and its cache on one or several devices.
pub struct Engine {
    devices: Devices,
    /// The device of the output head; none on the CPU.
    head_gpu: Option<Gpu>,
    decoder: Box<dyn Decoder>,
    cache: Cache,
    tuning: Tuning,
    sampling: Sampling,
    /// How tokens are proposed, if they are.
    speculation: Option<Speculation>,
    /// For each kind of step, and the loaded adapters that it is recorded with.
    steps: HashMap<(StepKind, StepAdapters), Rc<Step>>,
    /// Number of sequences that are decoded together.
    sequences: usize,
    /// For each slot of the cache, the tokens whose keys and values are in the cache.
    cached: Vec<Vec<u32>>,
    /// For each slot, the number of positions written: submitted steps may have gone beyond the kept tokens.
    written: Vec<usize>,
    /// For each slot, the owner of the cached tokens, and the last job that used them.
    owners: Vec<u64>,
    used: Vec<JobId>,
    /// For each slot, the loaded adapter that the cached tokens were computed with.
    slot_adapters: Vec<Option<String>>,
    chunks: PrefillChunks,
    sizes: StepSizes,
    jobs: Jobs,
    control: Arc<Control>,
    pause: Option<Pause>,
    /// Names of the attached adapters.
    adapters: Vec<String>,
    /// Names of the adapters that only the jobs that name them use.
    loaded: BTreeSet<String>,
}

impl Engine {
    /// Loads a checkpoint onto the device.
    ///
    /// # Errors
    /// The checkpoint or the device does not fit.
    pub async fn open(
        checkpoint: &Checkpoint,
        gpu: &Gpu,
        options: &EngineOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Engine, GenerateError> {
        Engine::open_on_devices(checkpoint, std::slice::from_ref(gpu), &[1.0], options, on_progress).await
    }

    /// Loads a checkpoint onto several devices, with consecutive layers on each and weights in proportion to `shares`.
    /// A token passes through the devices one after the other; the hidden state is transferred through the host.
    ///
    /// # Errors
    /// The checkpoint or a device does not fit, the number of shares differs from that of the devices, or there are
    /// more devices than layers.
    pub async fn open_on_devices(
        checkpoint: &Checkpoint,
        gpus: &[Gpu],
        shares: &[f64],
        options: &EngineOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Engine, GenerateError> {
        if gpus.is_empty() || gpus.len() != shares.len() {
            let (expected, got) = match gpus.len() {
                0 => ("at least one device".into(), "none".into()),
                count => (format!("one share for each of the {count} devices"), format!("{}", shares.len())),
            };
            return Err(bayan_models::ModelError::Split { expected, got }.into());
        }
        let layers = bayan_models::split_layers(checkpoint, options.policy.as_ref(), shares)?;
        Engine::open_with(checkpoint, Devices::new(gpus, layers), options, on_progress).await
    }

    /// Loads a checkpoint into host memory, to run it on the CPU.
    ///
    /// # Errors
    /// The checkpoint does not fit, or the options need a GPU.
    pub async fn open_on_cpu(
        checkpoint: &Checkpoint,
        cpu: &Cpu,
        options: &EngineOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Engine, GenerateError> {
        if let Some(layers) = options.gpu_layers {
            return Err(GenerateError::GpuLayers { layers });
        }
        Engine::open_with(checkpoint, Devices::of_cpu(cpu), options, on_progress).await
    }

    async fn open_with(
        checkpoint: &Checkpoint,
        mut devices: Devices,
        options: &EngineOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Engine, GenerateError> {
        let sizes = bayan_models::sizes(checkpoint)?;
        let context = options.context.unwrap_or_else(|| sizes.max_position_embeddings.min(DEFAULT_CONTEXT)).max(2);
        if context > sizes.max_position_embeddings {
            tracing::warn!(
                "a context of {context} is longer than the {} positions this model was made for",
                sizes.max_position_embeddings
            );
        }
        let Some(capabilities) = devices.capabilities() else { unreachable!("an engine has a device") };
        let mut chunks = PrefillChunks::new(options.prefill_chunk, capabilities);
        let mut context = context;
        let listed = options.sizes != StepSizes::Exact;
        if listed {
            let chunk = chunks.chunk().min(context);
            chunks = PrefillChunks::new(Some(chunk), capabilities);
            if options.sizes == StepSizes::Invariant {
                context -= context % chunk;
            }
        }
        if let Some(positions) = options.cache_positions.filter(|&positions| positions < context) {
            return Err(GenerateError::CachePositions { positions, context });
        }
        let placement = devices.placement(options.gpu_layers);
        let mut decoder = bayan_models::open_on(
            checkpoint,
            &placement,
            &LoadOptions { context },
            options.policy.clone(),
            on_progress,
        )
        .await?;
        let sequences = options.sequences.max(1);
        let slots = sequences + options.kept;
        let step = Some(step_tokens(&chunks));
        let shape = CacheShape { sequences: slots, context, format: options.cache, step, positions: None };
        let positions = options.cache_positions.unwrap_or(usize::MAX).min(shape.all_positions());
        let shape = CacheShape { positions: Some(positions), ..shape };
        let cache = Cache::placed(&placement, shape, &decoder.cache_specs())?;
        if cache.is_recurrent() && options.sizes == StepSizes::Invariant {
            return Err(GenerateError::Recurrent);
        }
        let head = decoder
            .linears_mut()
            .into_iter()
            .next_back()
            .and_then(|head| devices.gpus.iter().find(|gpu| head.weight.is_on(gpu)));
        let head_gpu = head.or(devices.gpus.first()).cloned();
        let sampling = Sampling::new(head_gpu.as_ref(), sequences, decoder.sizes().vocab_size)?;
        let tuning = Tuning::defaults(capabilities);
        tracing::info!(
            "{sequences} sequences of {context} positions, cache in {}, prompts in pieces of {} tokens",
            options.cache.name(),
            chunks.chunk()
        );
        let control = Arc::default();
        if listed {
            devices.share_memory();
        }
        Ok(Engine {
            devices,
            head_gpu,
            decoder,
            cache,
            tuning,
            sampling,
            speculation: None,
            steps: HashMap::new(),
            sequences,
            cached: vec![Vec::new(); slots],
            written: vec![0; slots],
            owners: vec![0; slots],
            used: vec![0; slots],
            slot_adapters: vec![None; slots],
            chunks,
            sizes: options.sizes,
            jobs: Jobs::default(),
            control,
            pause: None,
            adapters: Vec::new(),
            loaded: BTreeSet::new(),
        })
    }

    /// A handle on the running generation: its progress, and how to stop it.
    pub fn control(&self) -> Arc<Control> {
        self.control.clone()
    }

    /// What the device, or the first of several, offers. The CPU describes itself in the same terms.
    pub fn capabilities(&self) -> &Capabilities {
        let capabilities = self.devices.capabilities();
        capabilities.unwrap_or_else(|| unreachable!("an engine has a device"))
    }

    /// The CPU, if it runs the model.
    pub fn cpu(&self) -> Option<&Cpu> {
        self.devices.cpu.as_ref()
    }

    /// Bytes that the model has in the memory of all devices; on the CPU, those of weights and cache.
    pub fn allocated_bytes(&self) -> u64 {
        if self.devices.cpu.is_some() {
            let weights: u64 = self.decoder.distinct_matrices().iter().map(|matrix| matrix.size_bytes()).sum();
            return weights + self.cache_bytes() + self.draft().map_or(0, Engine::allocated_bytes);
        }
        self.devices.gpus.iter().map(Gpu::allocated_bytes).sum()
    }

    /// The GPUs; none on the CPU.
    pub fn gpus(&self) -> &[Gpu] {
        &self.devices.gpus
    }

    /// For each layer, the index of its device in [`Engine::gpus`].
    pub fn layer_devices(&self) -> &[usize] {
        &self.devices.layers
    }

    /// Bytes that each generated token of one sequence transfers through the host between devices; 0 on one device.
    ///
    /// # Errors
    /// The step cannot be recorded.
    pub fn transfer_bytes(&mut self) -> Result<u64, GenerateError> {
        Ok(self.step(StepKind::Decode(1), &StepAdapters::NONE)?.transfer_bytes())
    }

    /// The kernel variants in use.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Uses other kernel variants from the next step on.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
        self.steps.clear();
        self.devices.drop_copies();
    }

    /// Measures kernel variants on this model's matrices and uses the fastest; the CPU has none to choose from. `now_ms`
    /// is a clock in milliseconds.
    ///
    /// # Errors
    /// The device fails.
    pub async fn autotune(&mut self, now_ms: &dyn Fn() -> f64) -> Result<Vec<Measured>, GenerateError> {
        let Some(gpu) = self.devices.gpus.first().cloned() else { return Ok(Vec::new()) };
        let own = self.decoder.distinct_matrices().into_iter().filter(|matrix| matrix.is_on(&gpu));
        let matrices: Vec<_> = own.cloned().collect();
        let measured = measure_rows(&gpu, &matrices, now_ms).await?;
        if let Some(best) = measured.first() {
            self.set_tuning(Tuning { rows: Some(best.shape), ..self.tuning.clone() });
        }
        Ok(measured)
    }

    /// The model.
    pub fn decoder(&self) -> &dyn Decoder {
        self.decoder.as_ref()
    }

    /// Number of sequences that are decoded together.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Number of slots of the cache: one for each of these sequences, and those that keep tokens of ended ones.
    pub fn slots(&self) -> usize {
        self.cached.len()
    }

    /// Positions of the context of each sequence.
    pub fn context(&self) -> usize {
        self.cache.shape.context
    }

    /// Most tokens of a prompt in one step.
    pub fn prefill_chunk(&self) -> usize {
        self.chunks.chunk()
    }

    /// Number of compiled steps.
    pub fn compiled_steps(&self) -> usize {
        self.steps.len()
    }

    /// Bytes of weights that every step uploads from host memory; 0 when the whole model is on the device.
    pub fn streamed_bytes(&self) -> u64 {
        self.decoder.matrices().iter().map(|matrix| matrix.streamed_bytes()).sum()
    }

    /// Bytes of the key-value cache.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.size_bytes()
    }

    /// Number of tokens in the cache, over all sequences.
    pub fn cached_tokens(&self) -> usize {
        self.cached.iter().map(Vec::len).sum()
    }

    /// The draft model of speculative decoding.
    pub fn draft(&self) -> Option<&Engine> {
        self.speculation.as_ref().and_then(Speculation::draft)
    }

    /// Clears the cache.
    pub fn reset(&mut self) {
        self.cached.iter_mut().for_each(Vec::clear);
        self.cache.blocks_mut().clear();
        self.speculation.as_mut().and_then(Speculation::draft_mut).into_iter().for_each(Engine::reset);
    }

    fn step(&mut self, kind: StepKind, adapters: &StepAdapters) -> Result<Rc<Step>, GenerateError> {
        let key = (kind, adapters.clone());
        if let Some(step) = self.steps.get(&key) {
            return Ok(step.clone());
        }
        // Ends of prompts have many lengths; a few cached plans of them are enough.
        if self.steps.len() > 12 && self.sizes == StepSizes::Exact {
            self.steps.retain(|(kind, _), _| {
                matches!(kind, StepKind::Decode(_) | StepKind::Packed { .. } | StepKind::Verify { .. })
                    || *kind == StepKind::Prefill(self.chunks.chunk())
            });
        }
        let factors = self.enable(adapters, kind.tokens())?;
        let spec = StepSpec {
            decoder: self.decoder.as_ref(),
            cache: &self.cache,
            sampling: match (&self.speculation, kind) {
                (Some(speculation), StepKind::Verify { .. }) => &speculation.sampling,
                _ => &self.sampling,
            },
            tuning: &self.tuning,
            sums: None,
            factors: factors.as_ref(),
        };
        tracing::debug!("planning a step: {kind:?}");
        let step = Rc::new(Step::new(&mut self.devices, &spec, kind)?);
        if factors.is_some() {
            // The factors belong to this step.
            self.enable(&StepAdapters::NONE, 0)?;
        }
        self.steps.insert(key, step.clone());
        Ok(step)
    }

    /// The recorded step of this kind, with its constants on their devices.
    async fn prepared_step(&mut self, kind: StepKind, adapters: &StepAdapters) -> Result<Rc<Step>, GenerateError> {
        let step = self.step(kind, adapters)?;
        self.devices.fill_copies().await?;
        Ok(step)
    }

    /// The sizes of the model.
    pub fn sizes(&self) -> &Sizes {
        self.decoder.sizes()
    }

    fn check(&self, ids: &[u32]) -> Result<(), GenerateError> {
        let vocabulary = self.decoder.sizes().vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(&id) => Err(GenerateError::Token { id, vocabulary }),
            None => Ok(()),
        }
    }

    /// Logits \[V\] after each of the prompt's tokens, or only after the last. The first sequence's cache is cleared.
    ///
    /// # Errors
    /// The prompt does not fit, or the device fails.
    pub async fn logits(&mut self, ids: &[u32], all: bool) -> Result<Vec<Vec<f32>>, GenerateError> {
        self.check(ids)?;
        if ids.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if ids.len() > self.context() {
            return Err(GenerateError::PromptTooLong { prompt: ids.len(), context: self.context() });
        }
        self.empty(0);
        self.slot_adapters[0] = None;
        let vocabulary = self.decoder.sizes().vocab_size;
        let mut rows = Vec::new();
        for chunk in ids.chunks(self.chunks.chunk().min(LOGITS_CHUNK)) {
            let step = self.prepared_step(StepKind::Logits(chunk.len()), &StepAdapters::NONE).await?;
            self.hold(0, self.cached[0].len() + chunk.len())?;
            step.write(chunk, self.cached[0].len(), 0, &self.cache.table());
            self.cached[0].extend_from_slice(chunk);
            self.written[0] = self.cached[0].len();
            if let Some(read) = step.submit_reading(self.cached[0].len()).await?.pop() {
                let values = read.wait().await?;
                rows.extend(values.f32().chunks_exact(vocabulary).map(<[f32]>::to_vec));
            }
        }
        Ok(if all { rows } else { rows.split_off(rows.len().saturating_sub(1)) })
    }

    /// Continues a prompt. `on_token` is called with each new token and may stop the generation; a stop token ends the
    /// answer and is not passed to it.
    ///
    /// # Errors
    /// The prompt does not fit, or the device fails. After an error the cache is empty.
    pub async fn generate(
        &mut self,
        prompt: &[u32],
        settings: &SampleSettings,
        bias: &[(u32, f32)],
        stop: &[u32],
        max_tokens: usize,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Usage, GenerateError> {
        let request = Request { prompt, settings: *settings, bias, stop, max_tokens, grammar: None, scores: None };
        let usages = self.generate_many(&[request], &mut |_, token, _| on_token(token)).await?;
        usages.into_iter().next().ok_or(GenerateError::EmptyPrompt)
    }
}
