//! The trainer: accumulates gradients over micro-batches and updates the trained parameters.

mod gradient_check;
mod plans;
mod preference;
mod stored;
mod updates;

use std::sync::Arc;

use bayan_gpu::{Gpu, KernelTime};
use bayan_models::{Adapter, Cache, Decoder, Parameters};
use bayan_tensor::ops::Hyper;
use bayan_tensor::{Dtype, Graph, Plan, PlannedKernel, Pool, State, Tuning};

pub use gradient_check::GradientCheck;
use plans::{NAME, attach};
pub use preference::PairResult;

use super::EngineError;
use super::arena::Arena;
use super::loss_scale::{INITIAL_LOSS_SCALE, LossScale};
use super::step::{LossInputs, PackedBatch, Step, StepKind};
use crate::MicroBatch;

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

    /// The dispatches of [`Trainer::accumulate`]'s step for this batch; none without a device.
    ///
    /// # Errors
    /// The batch does not fit the model, or a kernel does not compile.
    pub fn kernels(&mut self, batch: &MicroBatch) -> Result<Vec<PlannedKernel>, EngineError> {
        let packed = PackedBatch::new(batch, self.options.context, self.decoder.sizes().vocab_size)?;
        self.prepare(packed.shape(StepKind::Supervised, 0))?;
        Ok(self.steps.last().map_or(Vec::new(), Step::kernels))
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

    /// For each sequence of the batch, the summed nll of its trained tokens, without gradients.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub async fn sequence_losses(&mut self, batch: &MicroBatch) -> Result<Vec<f64>, EngineError> {
        let result = self.run(batch, StepKind::Evaluate, &LossInputs::Scale(1.0)).await?;
        let sums = result.sums.into_iter().take(batch.starts.len());
        sums.map(finite).collect()
    }

    /// The factor that the loss scale puts on the gradients.
    fn loss_factor(&self) -> f64 {
        self.loss_scale.map_or(1.0, |loss_scale| loss_scale.scale)
    }

    /// The peak of device memory so far, in bytes.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.gpu.as_ref().map(Gpu::peak_allocated_bytes)
    }
}

fn finite(loss: f64) -> Result<f64, EngineError> {
    if loss.is_finite() { Ok(loss) } else { Err(EngineError::NotFinite { what: "the loss".into() }) }
}
