//! The trainer: accumulates gradients over micro-batches and updates the trained parameters.

mod gradient_check;
mod preference;

use std::sync::Arc;

use bayan_gpu::{Gpu, KernelTime};
use bayan_models::{Adapter, Cache, CacheFormat, CacheShape, Decoder, LoraPair, Parameters};
use bayan_tensor::ops::{Dropout, Hyper};
use bayan_tensor::{Dtype, Graph, Plan, Pool, State, Tuning};

pub use gradient_check::GradientCheck;
pub use preference::PairResult;
use preference::pairs_of;

use super::EngineError;
use super::arena::Arena;
use super::loss_scale::{INITIAL_LOSS_SCALE, LossScale};
use super::step::{LossInputs, PackedBatch, Shape, Step, StepKind, StepResult, rounded};
use crate::rng::split_mix;
use crate::{MicroBatch, NamedArray, TrainedWeights};

/// Name under which the LoRA pairs are attached.
const NAME: &str = "trained";

/// Recorded steps that are cached. They share the memory of their activations.
const PLANS: usize = 24;

/// How to train.
#[derive(Debug, Clone)]
pub struct TrainerOptions {
    /// Positions that the base model was opened with.
    pub context: usize,
    /// Gradient checkpointing: recompute each layer's activations in the backward pass instead of keeping them.
    pub recompute: bool,
    /// Most logits in memory at a time.
    pub logits_budget: usize,
    /// Seed of the dropout masks and the embedding noise.
    pub seed: u64,
    /// NEFTune α, in supervised steps: uniform noise on the embeddings within ±α / √(tokens of the sequence · hidden
    /// size).
    pub neftune: Option<f64>,
    /// Most multiply-adds of one submission, unless a single kernel has more: 2³⁴ take 0.3 s on a device with 0.1
    /// TFLOP/s.
    pub submission_work: u64,
    /// Keep saved activations in f16 and scale the loss; matrix products use f16 tiles where the device was opened with
    /// them.
    pub f16: bool,
    /// With `f16`: the initial loss scale, a power of two.
    pub loss_scale: f64,
}

impl Default for TrainerOptions {
    fn default() -> Self {
        Self {
            context: 2048,
            recompute: true,
            logits_budget: 16 << 20,
            seed: 0,
            neftune: None,
            submission_work: 1 << 34,
            f16: false,
            loss_scale: INITIAL_LOSS_SCALE,
        }
    }
}

/// A model with the adapter in training, or with all its parameters in training.
pub struct Trainer {
    gpu: Option<Gpu>,
    decoder: Box<dyn Decoder>,
    arena: Arena,
    options: TrainerOptions,
    dropout: f32,
    seed: Arc<State>,
    /// Micro-batches so far; they determine dropout masks and noise.
    micro_steps: u64,
    updates: u64,
    steps: Vec<Step>,
    /// Memory of the activations, shared by all steps.
    pool: Pool,
    /// Key/value cache of the largest step so far.
    cache: Option<Cache>,
    hyper: Arc<State>,
    norm: Arc<State>,
    optimizer: Option<Plan>,
    /// Loss scaling, with f16.
    loss_scale: Option<LossScale>,
}

impl Trainer {
    /// Makes a trainer for this base model and adapter. Without a device the interpreter runs everything except
    /// [`Trainer::update`], which fails.
    ///
    /// Gradients have the precision of the device's kernels: for f32 throughout, open it without `dot` and `f16`.
    ///
    /// # Errors
    /// The base has no such module, the loss scale is invalid, or memory is exhausted.
    pub fn new(
        gpu: Option<&Gpu>,
        mut decoder: Box<dyn Decoder>,
        adapter: &Adapter,
        options: TrainerOptions,
    ) -> Result<Trainer, EngineError> {
        let arena = Arena::new(gpu, adapter)?;
        // Attach the adapter once here, so that one that does not fit is refused before any step runs.
        attach(&mut *decoder, &arena, None)?;
        decoder.detach(NAME);
        Trainer::with_arena(gpu, decoder, arena, adapter.config.lora_dropout as f32, options)
    }

    /// Makes a trainer of all parameters of a decoder that was opened for full training.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn full(
        gpu: Option<&Gpu>,
        decoder: Box<dyn Decoder>,
        parameters: Parameters,
        options: TrainerOptions,
    ) -> Result<Trainer, EngineError> {
        Trainer::with_arena(gpu, decoder, Arena::full(gpu, parameters)?, 0.0, options)
    }

    fn with_arena(
        gpu: Option<&Gpu>,
        decoder: Box<dyn Decoder>,
        arena: Arena,
        dropout: f32,
        options: TrainerOptions,
    ) -> Result<Trainer, EngineError> {
        let hyper = State::zeros(gpu, "hyperparameters", &[Hyper::LEN], Dtype::F32)?;
        let norm = State::zeros(gpu, "gradient norm", &[4], Dtype::F32)?;
        let seed = State::zeros(gpu, "seed", &[1], Dtype::U32)?;
        let optimizer = match gpu {
            None => None,
            Some(gpu) => {
                let mut graph = Graph::new();
                graph.adamw(&arena.states, &hyper, &norm);
                Some(Plan::new(gpu, graph, &[], &Tuning::defaults(gpu.capabilities()))?)
            }
        };
        let gpu = gpu.cloned();
        let loss_scale = if options.f16 { Some(LossScale::new(options.loss_scale)?) } else { None };
        Ok(Trainer {
            gpu,
            decoder,
            arena,
            options,
            dropout,
            seed,
            micro_steps: 0,
            updates: 0,
            steps: Vec::new(),
            pool: Pool::default(),
            loss_scale,
            cache: None,
            hyper,
            norm,
            optimizer,
        })
    }

    /// The base model.
    pub fn decoder(&self) -> &dyn Decoder {
        &*self.decoder
    }

    /// Returns the base model, without the trained adapter.
    pub fn into_decoder(self) -> Box<dyn Decoder> {
        self.decoder
    }

    /// Optimizer updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Micro-batches so far, which determine dropout masks and noise; checkpoints save and restore this count.
    pub fn micro_steps(&mut self) -> &mut u64 {
        &mut self.micro_steps
    }

    /// Activation bytes of the largest step so far, and the dispatches of the latest step.
    pub fn cost(&self) -> (u64, usize) {
        (
            self.steps.iter().map(Step::activation_bytes).max().unwrap_or(0),
            self.steps.last().map_or(0, Step::dispatches),
        )
    }

    /// Submissions of the latest step.
    pub fn submissions(&self) -> usize {
        self.steps.last().map_or(0, Step::submissions)
    }

    /// Adds the gradients of `scale` · Σ nll over the trained tokens, and returns that loss. For the mean over the
    /// tokens of several micro-batches (`token_mean`) the scale is one over the trained tokens of all of them.
    ///
    /// # Errors
    /// The batch does not fit the model, the device fails, or the loss is not finite.
    pub async fn accumulate(&mut self, batch: &MicroBatch, scale: f64) -> Result<f64, EngineError> {
        let loss_factor = self.loss_factor();
        let result = self.run(batch, StepKind::Supervised, &LossInputs::Scale((scale * loss_factor) as f32)).await?;
        finite(f64::from(result.loss) / loss_factor)
    }

    /// Runs [`Trainer::accumulate`]'s step once more with a timestamp pair around each kernel; `None` where the device
    /// has none.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub async fn profile(&mut self, batch: &MicroBatch, scale: f64) -> Result<Option<Vec<KernelTime>>, EngineError> {
        self.accumulate(batch, scale).await?;
        match (&self.gpu, self.steps.last()) {
            (Some(gpu), Some(step)) if gpu.capabilities().timestamps => step.profile(gpu).await.map(Some),
            _ => Ok(None),
        }
    }

    /// The summed nll of the trained tokens and their number, without gradients.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub async fn evaluate(&mut self, batch: &MicroBatch) -> Result<(f64, usize), EngineError> {
        let result = self.run(batch, StepKind::Evaluate, &LossInputs::Scale(1.0)).await?;
        Ok((finite(result.sums.iter().sum())?, batch.target_count()))
    }

    /// Reserves the memory of a training step over a batch of this shape with at least `trained` trained tokens, so
    /// that smaller batches allocate nothing more.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub fn reserve(&mut self, batch: &MicroBatch, trained: usize, preference: bool) -> Result<(), EngineError> {
        let (kind, pairs) =
            if preference { (StepKind::Preference, pairs_of(batch)?) } else { (StepKind::Supervised, 0) };
        let packed = PackedBatch::new(batch, self.options.context, self.decoder.sizes().vocab_size)?;
        let mut shape = packed.shape(kind, pairs);
        shape.rows = shape.rows.max(rounded(trained.max(1), 16));
        self.prepare(shape)
    }

    async fn run(
        &mut self,
        batch: &MicroBatch,
        kind: StepKind,
        loss_inputs: &LossInputs,
    ) -> Result<StepResult, EngineError> {
        let pairs = if let LossInputs::Preference(reference, ..) = loss_inputs { reference.len() } else { 0 };
        let packed = PackedBatch::new(batch, self.options.context, self.decoder.sizes().vocab_size)?;
        if packed.count == 0 {
            return Err(EngineError::input(
                "micro-batch",
                "at least one trained token",
                "none",
                "drop examples without any, or train on all tokens",
            ));
        }
        if matches!(kind, StepKind::Supervised | StepKind::Preference) {
            let mut state = self.options.seed ^ self.micro_steps.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let seed = (split_mix(&mut state) >> 32) as u32;
            self.seed.write(self.gpu.as_ref(), 0, bytemuck::bytes_of(&seed));
            self.micro_steps += 1;
        }
        self.prepare(packed.shape(kind, pairs))?;
        match self.steps.last() {
            Some(step) => step.run(self.gpu.as_ref(), &packed, loss_inputs).await,
            None => Ok(StepResult::default()),
        }
    }

    /// Records the step of this shape, or moves the cached step to the end of the list.
    fn prepare(&mut self, shape: Shape) -> Result<(), EngineError> {
        if let Some(at) = self.steps.iter().position(|step| step.shape == shape) {
            let step = self.steps.remove(at);
            self.steps.push(step);
            return Ok(());
        }
        if self.steps.len() >= PLANS {
            self.steps.remove(0);
        }
        if shape.kind != StepKind::Base {
            let trains = matches!(shape.kind, StepKind::Supervised | StepKind::Preference) && self.dropout > 0.0;
            attach(&mut *self.decoder, &self.arena, trains.then_some((self.dropout, &self.seed)))?;
        }
        let step = self.record(shape);
        self.decoder.detach(NAME);
        self.steps.push(step?);
        Ok(())
    }

    fn record(&mut self, shape: Shape) -> Result<Step, EngineError> {
        let gpu = self.gpu.as_ref();
        let cache = match self.cache.take().filter(|cache| cache.shape.context >= shape.tokens) {
            Some(cache) => cache,
            None => {
                // Recorded steps refer to the smaller cache.
                self.steps.clear();
                Cache::new(
                    gpu,
                    CacheShape { sequences: 1, context: shape.tokens, format: CacheFormat::F32, step: None },
                    &self.decoder.cache_specs(),
                )?
            }
        };
        let step =
            Step::new(gpu, &*self.decoder, &self.arena, &cache, shape, &self.options, &self.seed, &mut self.pool);
        self.cache = Some(cache);
        step
    }

    /// The factor that the loss scale puts on the gradients.
    fn loss_factor(&self) -> f64 {
        self.loss_scale.map_or(1.0, |loss_scale| loss_scale.scale)
    }

    /// The state of loss scaling, with f16; checkpoints save and restore it.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }

    /// Restores the state that [`Trainer::loss_scale`] returned.
    ///
    /// # Errors
    /// A scale for a trainer without loss scaling, none for one with it, or an invalid scale.
    pub fn set_loss_scale(&mut self, loss_scale: Option<LossScale>) -> Result<(), EngineError> {
        if loss_scale.is_some() != self.options.f16 {
            let of = |there: bool| if there { "one" } else { "none" };
            return Err(EngineError::input(
                "loss scale",
                of(self.options.f16),
                of(loss_scale.is_some()),
                "resume with the recipe of the run",
            ));
        }
        self.loss_scale = loss_scale.map(LossScale::checked).transpose()?;
        Ok(())
    }

    /// Calls [`Trainer::update`] and returns [`Trainer::gradient_norm`]. `None` means, with f16, that the gradients
    /// were not finite: nothing was updated, the loss scale is now lower, and the caller must repeat the micro-batches.
    ///
    /// # Errors
    /// As those of the two methods.
    pub async fn try_update(&mut self, hyper: &Hyper) -> Result<Option<f64>, EngineError> {
        self.update(hyper)?;
        let norm = self.gradient_norm().await;
        let Some(loss_scale) = &mut self.loss_scale else { return norm.map(Some) };
        match norm {
            Ok(norm) => {
                loss_scale.record_success();
                Ok(Some(norm))
            }
            Err(EngineError::NotFinite { .. }) if loss_scale.record_overflow() => {
                self.updates -= 1;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Updates the trained parameters with the accumulated gradients and clears them. The trainer sets
    /// [`Hyper::update`] and [`Hyper::loss_scale`] itself.
    ///
    /// # Errors
    /// The trainer has no device.
    pub fn update(&mut self, hyper: &Hyper) -> Result<(), EngineError> {
        let (Some(gpu), Some(optimizer)) = (&self.gpu, &self.optimizer) else {
            return Err(EngineError::input("trainer", "a device to update on", "none", "open one"));
        };
        self.updates += 1;
        let numbers = Hyper { update: self.updates, loss_scale: self.loss_factor(), ..*hyper }.numbers();
        self.hyper.write(Some(gpu), 0, bytemuck::cast_slice(&numbers));
        optimizer.submit(gpu, 0, &[]);
        self.arena.clear_gradients(Some(gpu));
        Ok(())
    }

    /// The norm of the gradients before clipping at the last update. A norm that is not finite is an error; that update
    /// changed nothing.
    ///
    /// # Errors
    /// The device failed, or the norm is not finite.
    pub async fn gradient_norm(&self) -> Result<f64, EngineError> {
        let values = self.norm.read(self.gpu.as_ref()).await?;
        let norm = f64::from(values.f32()[0]);
        if norm.is_finite() {
            Ok(norm)
        } else {
            Err(EngineError::NotFinite { what: "the norm of the gradients".into() })
        }
    }

    /// Sets the gradients to zero.
    pub fn clear_gradients(&self) {
        self.arena.clear_gradients(self.gpu.as_ref());
    }

    /// The gradients accumulated so far, in the layout of the trained parameters.
    ///
    /// # Errors
    /// The device failed.
    pub async fn gradients(&self) -> Result<TrainedWeights, EngineError> {
        let mut gradients = self.arena.read(self.gpu.as_ref(), true).await?;
        let unscale = (1.0 / self.loss_factor()) as f32;
        let divide = |values: &mut Vec<f32>| values.iter_mut().for_each(|v| *v *= unscale);
        match &mut gradients {
            TrainedWeights::Adapter(adapter) => adapter.modules.values_mut().for_each(|module| {
                divide(&mut module.a);
                divide(&mut module.b);
            }),
            TrainedWeights::Full(arrays) => arrays.iter_mut().for_each(|array| divide(&mut array.values)),
        }
        Ok(gradients)
    }

    /// The first tensor with NaN or infinity, or otherwise the first whose gradient has one, by PEFT's or Hugging
    /// Face's name.
    ///
    /// # Errors
    /// The device failed.
    pub async fn not_finite(&self) -> Result<Option<String>, EngineError> {
        let bad = |values: &[f32]| values.iter().any(|v| !v.is_finite());
        let first = |of: &TrainedWeights| match of {
            TrainedWeights::Adapter(adapter) => adapter.modules.iter().find_map(|(name, m)| {
                let (a, b) = bayan_models::tensor_names(name);
                bad(&m.a).then_some(a).or(bad(&m.b).then_some(b))
            }),
            TrainedWeights::Full(arrays) => {
                arrays.iter().find(|array| bad(&array.values)).map(|array| array.name.clone())
            }
        };
        if let Some(name) = first(&self.weights().await?) {
            return Ok(Some(name));
        }
        Ok(first(&self.gradients().await?).map(|name| format!("the gradient of {name}")))
    }

    /// The peak of device memory so far, in bytes.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.gpu.as_ref().map(Gpu::peak_allocated_bytes)
    }

    /// The trained parameters.
    ///
    /// # Errors
    /// The device failed.
    pub async fn weights(&self) -> Result<TrainedWeights, EngineError> {
        self.arena.read(self.gpu.as_ref(), false).await
    }

    /// Loads what [`Trainer::weights`] returned; resets moments, gradients and the count of updates.
    ///
    /// # Errors
    /// The weights have other sizes.
    pub fn load_weights(&mut self, weights: &TrainedWeights) -> Result<(), EngineError> {
        self.arena.load(self.gpu.as_ref(), weights)?;
        (self.updates, self.micro_steps) = (0, 0);
        self.loss_scale = if self.options.f16 { Some(LossScale::new(self.options.loss_scale)?) } else { None };
        Ok(())
    }

    /// Moments and the number of updates, for a checkpoint.
    ///
    /// # Errors
    /// The device failed.
    pub async fn optimizer_state(&self) -> Result<Vec<NamedArray>, EngineError> {
        let mut arrays = Vec::new();
        for (name, state) in [("exp_avg", &self.arena.states.first), ("exp_avg_sq", &self.arena.states.second)] {
            let values = state.read(self.gpu.as_ref()).await?.f32().to_vec();
            arrays.push(NamedArray { name: name.into(), shape: vec![values.len()], values });
        }
        // Two f32 numbers hold each count exactly up to 2^48.
        let counts =
            [self.updates, self.micro_steps].iter().flat_map(|n| [(n >> 24) as f32, (n & 0xff_ffff) as f32]).collect();
        arrays.push(NamedArray { name: "counts".into(), shape: vec![4], values: counts });
        Ok(arrays)
    }

    /// Loads what [`Trainer::optimizer_state`] returned. Load the weights first, because loading them resets the
    /// moments.
    ///
    /// # Errors
    /// An array is missing or has another size.
    pub fn load_optimizer_state(&mut self, arrays: &[NamedArray]) -> Result<(), EngineError> {
        let find = |name: &str, len: usize| {
            let found = arrays.iter().find(|array| array.name == name && array.values.len() == len);
            found.ok_or_else(|| {
                EngineError::input(
                    "optimizer state",
                    format!("{len} numbers `{name}`"),
                    "others",
                    "resume with the recipe of the run",
                )
            })
        };
        let len = self.arena.states.first.shape()[0];
        for (name, state) in [("exp_avg", &self.arena.states.first), ("exp_avg_sq", &self.arena.states.second)] {
            state.write(self.gpu.as_ref(), 0, bytemuck::cast_slice(&find(name, len)?.values));
        }
        let counts = &find("counts", 4)?.values;
        let count = |high: f32, low: f32| ((high as u64) << 24) + low as u64;
        (self.updates, self.micro_steps) = (count(counts[0], counts[1]), count(counts[2], counts[3]));
        Ok(())
    }
}

fn attach(decoder: &mut dyn Decoder, arena: &Arena, dropout: Option<(f32, &Arc<State>)>) -> Result<(), EngineError> {
    for (number, slot) in arena.slots().iter().enumerate() {
        let [a, b] = slot.parameters.clone();
        let dropout = dropout.map(|(p, seed)| Dropout { p, salt: number as u32 + 1, seed: seed.clone() });
        let pair = LoraPair { adapter: NAME.to_string(), rows: 0..0, a, b, scale: slot.scale, dropout };
        if let Err(error) = decoder.attach(&slot.name, pair) {
            decoder.detach(NAME);
            return Err(error.into());
        }
    }
    Ok(())
}

fn finite(loss: f64) -> Result<f64, EngineError> {
    if loss.is_finite() { Ok(loss) } else { Err(EngineError::NotFinite { what: "the loss".into() }) }
}
