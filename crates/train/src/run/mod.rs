//! A run: data, steps, evaluations, checkpoints and logs, until it is complete, stopped, or a value is not finite.
//!
//! The run is a loop over plain state that is saved completely between two steps, and it reports events through one
//! trait; the command line, a test or another front end can drive it. Rejected: the loop inside the command line,
//! because resuming could then be tested only through a process.

mod base;
mod data;
mod norms;
#[cfg(not(target_arch = "wasm32"))]
mod output;
mod pace;
mod preference;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;
// The standard library has no clock in a browser.
#[cfg(not(target_arch = "wasm32"))]
use std::time::Instant;

#[cfg(target_arch = "wasm32")]
use web_time::Instant;

use bayan_tensor::ops::Hyper;

use crate::checkpoint::{Resumed, TrainState, TrainedWeights};
use crate::engine::{EngineError, Trainer};
use crate::error::TrainError;
use crate::log_entry::LogEntry;
use crate::order::{Batch, Order};
use crate::recipe::{LossNormalization, Method, Recipe, RunLength};

pub use base::{BaseInfo, check_recipe};
pub use data::{RunData, Units};
use norms::Norms;
#[cfg(not(target_arch = "wasm32"))]
pub use output::{DirectoryStore, RECIPE_FILE, model_files, prepare_output, resumable, write_result};
use pace::Pace;
pub use store::{MemoryStore, RunStore};

/// The random stream of a new adapter's weights: the same seed gives the same adapter on any platform.
pub const INITIAL_WEIGHTS: u64 = 1 << 40;

/// Number of checkpoints of a run whose recipe sets no interval.
const CHECKPOINTS: u64 = 10;

/// An error that ends a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Data, recipe or files.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A benchmark that is scored while training.
    #[error("the benchmarks cannot be scored: {0}")]
    Benchmark(String),
    /// NaN or infinity in the loss or the gradients.
    #[error(
        "step {step}: {what} is not finite{}; training stopped. {}; lower learning_rate, raise warmup_steps, or set max_grad_norm",
        tensor.as_ref().map(|t| format!(", and neither is `{t}`")).unwrap_or_default(),
        checkpoint.as_ref().map_or_else(|| "No checkpoint was saved before it".to_owned(), |c| format!("The last good checkpoint is {c}"))
    )]
    NotFinite {
        /// The optimizer step, from 0.
        step: u64,
        /// Which value is not finite: the loss, or the norm of the gradients.
        what: String,
        /// The first tensor with such a value.
        tensor: Option<String>,
        /// The checkpoint to resume from.
        checkpoint: Option<String>,
    },
}

/// An event of a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Progress of computing the reference's log-probabilities before training.
    Reference {
        /// Batches done.
        done: usize,
        /// Number of batches.
        total: usize,
    },
    /// An optimizer step was done.
    Step {
        /// Loss, learning rate, norm, speed, memory.
        entry: &'a LogEntry,
        /// Whether the step was logged.
        logged: bool,
        /// Steps of the whole run.
        total_steps: u64,
        /// Estimated remaining time.
        left: Duration,
    },
    /// A gradient norm that is out of all proportion; said once in a run.
    LargeNorm {
        /// The optimizer step, from 0.
        step: u64,
        /// The norm before clipping.
        norm: f64,
        /// The median norm of the steps before it, if there were enough.
        median: Option<f64>,
    },
    /// Progress of an evaluation.
    Evaluating {
        /// Batches done.
        done: usize,
        /// Number of batches.
        total: usize,
    },
    /// An evaluation was done.
    Evaluated {
        /// Its numbers.
        entry: &'a LogEntry,
        /// Whether it is the best so far.
        best: bool,
    },
    /// Benchmarks were scored.
    Benchmarked {
        /// Their scores.
        entry: &'a LogEntry,
    },
    /// A checkpoint was saved.
    Saved {
        /// Its directory, or the name of what was kept in memory.
        place: &'a str,
        /// Steps done.
        step: u64,
    },
}

/// Receives the events of a run, and may stop it.
pub trait Observer {
    /// Called on each event.
    fn event(&mut self, event: Event<'_>);

    /// The scores of the recipe's benchmarks (`eval`), by their names, after this many steps. This crate knows no
    /// benchmarks: the caller that has them scores them with the trainer.
    ///
    /// # Errors
    /// The caller has no benchmarks, or one cannot be scored.
    fn benchmarks(&mut self, trainer: &mut Trainer, steps: u64) -> Result<BTreeMap<String, f64>, RunError> {
        let _ = (trainer, steps);
        Err(RunError::Benchmark("expected none, because only `bayan finetune` scores them; leave `eval` out".into()))
    }

    /// Whether to save a checkpoint and stop; called after each step.
    fn stop(&mut self) -> bool {
        false
    }
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// All steps were done.
    Done,
    /// The evaluation loss stopped improving.
    EarlyStopped,
    /// The observer stopped the run; it can be resumed.
    Interrupted,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSummary {
    /// Why the run ended.
    pub end: EndReason,
    /// Optimizer steps done, including those before a resumption.
    pub steps: u64,
    /// Training tokens seen.
    pub tokens: u64,
    /// Time in this process.
    pub elapsed: Duration,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Best evaluation: the number of steps before it and its loss.
    pub best: Option<(u64, f64)>,
    /// The number of steps after which the resulting weights were saved.
    pub weights_of_step: u64,
    /// The resulting weights: the best with `keep_best`, otherwise the last.
    pub weights: TrainedWeights,
}

/// A run that can be started.
pub struct Run<'a> {
    /// Its recipe.
    pub recipe: &'a Recipe,
    /// Its data.
    pub data: &'a RunData,
}

struct State<'a> {
    run: &'a Run<'a>,
    store: &'a mut dyn RunStore,
    length: RunLength,
    state: TrainState,
    order: Order,
    /// DPO: the reference's log-probabilities of every training example, if computed before training.
    reference: Option<Vec<[f32; 2]>>,
    started: Instant,
    pace: Pace,
    saved: Option<u64>,
    norms: Norms,
}

impl Run<'_> {
    /// The length of the run.
    pub fn run_length(&self) -> RunLength {
        self.recipe.run_length(self.data.train.len())
    }

    /// Number of epochs, including an incomplete one.
    pub fn epochs(&self) -> u64 {
        let length = self.run_length();
        length.total_steps.div_ceil(length.steps_per_epoch.max(1))
    }

    /// Measures the time of the run on this device: the first micro-batch is computed twice, because kernels are
    /// compiled the first time, and the second time stands for each of its tokens. Compiling and evaluations are not
    /// counted. The trainer is as before.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub async fn measure(&self, trainer: &mut Trainer) -> Result<Duration, EngineError> {
        let Some(batch) = self.data.first_batch(self.recipe) else { return Ok(Duration::ZERO) };
        let micro_steps = *trainer.micro_steps();
        let mut elapsed = Duration::ZERO;
        for _ in 0..2 {
            let begun = Instant::now();
            if self.recipe.method == Method::Dpo {
                let reference = trainer.reference_log_probabilities(&batch).await?;
                trainer.accumulate_pairs(&batch, &reference, self.recipe.beta, 1.0).await?;
            } else {
                trainer.accumulate(&batch, 1.0 / batch.target_count().max(1) as f64).await?;
            }
            elapsed = begun.elapsed();
        }
        trainer.clear_gradients();
        *trainer.micro_steps() = micro_steps;
        let share = self.tokens() / batch.ids.len().max(1) as f64;
        Ok(Duration::try_from_secs_f64(elapsed.as_secs_f64() * share).unwrap_or(Duration::MAX))
    }

    /// Tokens that the whole run computes, evaluations left out; an incomplete epoch counts with its share.
    pub fn tokens(&self) -> f64 {
        let length = self.run_length();
        let epochs = length.total_steps as f64 / length.steps_per_epoch.max(1) as f64;
        epochs * self.data.train.dataset().lengths().iter().sum::<usize>() as f64
    }

    /// Trains from the beginning, or continues from a checkpoint; `store` gets the checkpoints and the log. The trainer
    /// must have the initial weights of a new run.
    ///
    /// # Errors
    /// Data or a checkpoint that does not belong to this recipe, a failure of the device or the disk, or a loss that is
    /// not finite; the last checkpoint is then unchanged.
    pub async fn start(
        &self,
        trainer: &mut Trainer,
        resumed: Option<Resumed>,
        store: &mut dyn RunStore,
        observer: &mut dyn Observer,
    ) -> Result<RunSummary, RunError> {
        let length = self.run_length();
        let state = match resumed {
            None => TrainState::new(length.schedule, self.recipe, self.data.fingerprint()),
            Some(resumed) => {
                self.check(&resumed)?;
                trainer.load_weights(&resumed.weights)?;
                trainer.load_optimizer_state(&resumed.optimizer)?;
                trainer.set_loss_scale(resumed.state.loss_scale)?;
                resumed.state
            }
        };
        let recipe = self.recipe;
        let order =
            Order::new(self.data.train.len(), recipe.batch_size, recipe.seed, recipe.shuffle).resumed(state.position);
        store.open(state.step)?;
        // The largest step first: a run that does not fit the device fails now and not after an hour.
        let (largest, trained) = self.data.largest_batch(recipe, self.epochs());
        trainer.reserve(&largest, trained, recipe.method == Method::Dpo)?;
        let saved = Some(state.step).filter(|step| *step > 0);
        let started = Instant::now();
        let mut running = State {
            run: self,
            store,
            length,
            state,
            order,
            reference: None,
            started,
            pace: Pace::default(),
            saved,
            norms: Norms::default(),
        };
        if recipe.method == Method::Dpo && recipe.precompute_reference {
            running.reference =
                Some(preference::reference(trainer, &self.data.train, recipe.batch_size, observer).await?);
            running.started = Instant::now();
        }
        let ended = running.run_steps(trainer, observer).await;
        // The log of a failed run is closed too.
        let closed = running.store.close();
        let ended = ended?;
        closed?;
        Ok(ended)
    }

    /// Checks that a checkpoint belongs to this run.
    fn check(&self, resumed: &Resumed) -> Result<(), TrainError> {
        if resumed.state.data_fingerprint != self.data.fingerprint() {
            let (expected, remedy) =
                ("the data of the start of the run", "restore the data, or start a new run with another --output");
            return Err(TrainError::checkpoint(&resumed.path, expected, "other examples", remedy));
        }
        if resumed.state.schedule != self.run_length().schedule {
            let (expected, remedy) =
                ("the learning rates at the start of the run", "resume with the recipe of the run");
            return Err(TrainError::checkpoint(&resumed.path, expected, "another length or schedule", remedy));
        }
        Ok(())
    }
}

impl State<'_> {
    async fn run_steps(&mut self, trainer: &mut Trainer, observer: &mut dyn Observer) -> Result<RunSummary, RunError> {
        let recipe = self.run.recipe;
        let save_every = recipe.save_every.unwrap_or_else(|| self.length.total_steps.div_ceil(CHECKPOINTS).max(1));
        let (mut end, mut loss) = (EndReason::Done, None);
        while self.state.step < self.length.total_steps {
            loss = Some(self.step(trainer, observer).await?);
            let last = self.state.step == self.length.total_steps;
            let due = last || recipe.eval_every.is_some_and(|every| self.state.step.is_multiple_of(every));
            let evaluates = self.run.data.valid.is_some() && due;
            let (mut best, mut exhausted) = (false, false);
            if evaluates {
                (best, exhausted) = self.evaluate(trainer, observer).await?;
            }
            if recipe.eval.is_some() && due {
                self.benchmark(trainer, observer)?;
            }
            let stop = observer.stop();
            if last || stop || exhausted || best && recipe.keep_best || self.state.step.is_multiple_of(save_every) {
                self.save(trainer, observer).await?;
            }
            if exhausted && !last {
                end = EndReason::EarlyStopped;
                break;
            }
            if stop && !last {
                end = EndReason::Interrupted;
                break;
            }
        }
        let weights_of_step = match self.state.best {
            Some((step, _)) if recipe.keep_best && end != EndReason::Interrupted => step,
            _ => self.state.step,
        };
        let weights = if weights_of_step == self.state.step {
            trainer.weights().await?
        } else {
            self.store.weights(weights_of_step)?
        };
        let (steps, tokens, best) = (self.state.step, self.state.tokens, self.state.best);
        Ok(RunSummary { end, steps, tokens, elapsed: self.started.elapsed(), loss, best, weights_of_step, weights })
    }

    /// Runs one optimizer step.
    async fn step(&mut self, trainer: &mut Trainer, observer: &mut dyn Observer) -> Result<f64, RunError> {
        let (recipe, begun) = (self.run.recipe, Instant::now());
        let step = self.state.step;
        let batches = self.order.next_step(recipe.gradient_accumulation_steps);
        let mut entry = LogEntry { step, ..LogEntry::default() };
        let learning_rate = self.length.schedule.at(step);
        let betas = (recipe.adam_beta1, recipe.adam_beta2);
        let (eps, weight_decay, max_norm) = (recipe.adam_epsilon, recipe.weight_decay, recipe.max_grad_norm);
        let hyper = Hyper { learning_rate, betas, eps, weight_decay, max_norm, update: 0, loss_scale: 1.0 };
        let micro_steps = *trainer.micro_steps();
        let (loss, tokens, norm) = loop {
            let scaled = trainer.loss_scale();
            entry.loss_scale = scaled.map(|of| of.scale);
            entry.skipped_updates = scaled.map(|of| of.skipped_updates);
            let computed = match recipe.method {
                Method::Sft => self.accumulate_supervised(trainer, &batches).await,
                Method::Dpo => self.accumulate_pairs(trainer, &batches, &mut entry).await,
            };
            let updated = match computed {
                Ok((loss, tokens)) => {
                    trainer.try_update(&hyper).await.map(|norm| norm.map(|norm| (loss, tokens, norm)))
                }
                Err(error) => Err(error),
            };
            match updated {
                Ok(Some(done)) => break done,
                // The update was skipped: repeat it with the lower loss scale and the same dropout and noise.
                Ok(None) => *trainer.micro_steps() = micro_steps,
                Err(error) => return Err(self.name_tensor(trainer, error).await),
            }
        };
        self.state.tokens += tokens as u64;
        self.state.loss_scale = trainer.loss_scale();
        self.state.step += 1;
        self.state.position = self.order.position();
        let elapsed = begun.elapsed();
        self.pace.add(tokens, elapsed);
        entry.epoch = self.epoch();
        entry.loss = Some(loss);
        entry.learning_rate = Some(learning_rate);
        entry.grad_norm = Some(norm);
        entry.tokens_per_second = Some(self.pace.tokens_per_second());
        entry.step_seconds = Some(elapsed.as_secs_f64());
        entry.memory_bytes = trainer.memory_bytes();
        let logged = self.state.step.is_multiple_of(recipe.log_every) || self.state.step == self.length.total_steps;
        if logged {
            self.store.add(&entry)?;
        }
        if let Some(median) = self.norms.add(norm) {
            observer.event(Event::LargeNorm { step, norm, median });
        }
        let left = self.pace.time_of(self.length.total_steps - self.state.step);
        observer.event(Event::Step { entry: &entry, logged, total_steps: self.length.total_steps, left });
        Ok(loss)
    }

    fn epoch(&self) -> f64 {
        let position = self.state.position;
        position.epoch as f64 + position.taken as f64 / self.run.data.train.len().max(1) as f64
    }

    /// Accumulates the gradients of a step's micro-batches; returns the loss and the number of tokens.
    async fn accumulate_supervised(
        &self,
        trainer: &mut Trainer,
        batches: &[Batch],
    ) -> Result<(f64, usize), EngineError> {
        let train = &self.run.data.train;
        let batches: Vec<_> = batches.iter().map(|batch| train.micro_batch(&batch.examples)).collect();
        let total: usize = batches.iter().map(|batch| batch.target_count()).sum();
        let mut loss = 0.0;
        for batch in &batches {
            let tokens = match self.run.recipe.loss_normalization {
                LossNormalization::TokenMean => total,
                LossNormalization::MeanOfMeans => batch.target_count() * batches.len(),
            };
            loss += trainer.accumulate(batch, 1.0 / tokens.max(1) as f64).await?;
        }
        Ok((loss, batches.iter().map(|batch| batch.ids.len()).sum()))
    }

    /// As [`State::accumulate_supervised`], for preference pairs.
    async fn accumulate_pairs(
        &self,
        trainer: &mut Trainer,
        batches: &[Batch],
        entry: &mut LogEntry,
    ) -> Result<(f64, usize), EngineError> {
        let recipe = self.run.recipe;
        let total: usize = batches.iter().map(|batch| batch.examples.len()).sum();
        let mut tally = preference::Tally::default();
        let (mut loss, mut tokens) = (0.0, 0);
        for batch in batches {
            let micro = self.run.data.train.micro_batch(&batch.examples);
            let reference = match &self.reference {
                Some(all) => batch.examples.iter().map(|&example| all[example]).collect(),
                None => trainer.reference_log_probabilities(&micro).await?,
            };
            let result = trainer.accumulate_pairs(&micro, &reference, recipe.beta, 1.0 / total.max(1) as f64).await?;
            loss += result.loss;
            result.pairs.iter().for_each(|pair| tally.add(f64::from(pair[2])));
            tokens += micro.ids.len();
        }
        (entry.reward_accuracy, entry.reward_margin) = tally.means();
        Ok((loss, tokens))
    }

    /// Evaluates. Returns whether the loss is the best so far, and whether the patience is exhausted.
    async fn evaluate(&mut self, trainer: &mut Trainer, observer: &mut dyn Observer) -> Result<(bool, bool), RunError> {
        let recipe = self.run.recipe;
        let Some(valid) = &self.run.data.valid else { return Ok((false, false)) };
        let mut entry =
            LogEntry { step: self.state.step.saturating_sub(1), epoch: self.epoch(), ..LogEntry::default() };
        let batches = valid.batches(recipe.batch_size);
        let (mut sum, mut count, mut tally) = (0.0, 0usize, preference::Tally::default());
        for (done, units) in batches.iter().enumerate() {
            let batch = valid.micro_batch(units);
            let evaluated = match recipe.method {
                Method::Sft => trainer.evaluate(&batch).await,
                Method::Dpo => preference::evaluate(trainer, &batch, recipe.beta, &mut tally).await,
            };
            let (loss, of) = match evaluated {
                Ok(found) => found,
                Err(error) => return Err(self.name_tensor(trainer, error).await),
            };
            sum += loss;
            count += of;
            observer.event(Event::Evaluating { done: done + 1, total: batches.len() });
        }
        let loss = sum / count.max(1) as f64;
        entry.eval_loss = Some(loss);
        (entry.reward_accuracy, entry.reward_margin) = tally.means();
        self.store.add(&entry)?;
        let (best, exhausted) = self.state.evaluated(loss, recipe.early_stopping_patience);
        observer.event(Event::Evaluated { entry: &entry, best });
        Ok((best, exhausted))
    }

    /// Has the observer score the benchmarks, and writes the scores to the log.
    fn benchmark(&mut self, trainer: &mut Trainer, observer: &mut dyn Observer) -> Result<(), RunError> {
        let scores = observer.benchmarks(trainer, self.state.step)?;
        let step = self.state.step.saturating_sub(1);
        let entry = LogEntry { step, epoch: self.epoch(), scores, ..LogEntry::default() };
        self.store.add(&entry)?;
        observer.event(Event::Benchmarked { entry: &entry });
        Ok(())
    }

    async fn save(&mut self, trainer: &mut Trainer, observer: &mut dyn Observer) -> Result<(), RunError> {
        if self.saved == Some(self.state.step) {
            return Ok(());
        }
        let weights = trainer.weights().await?;
        let place = self.store.save(&self.state, &weights, &trainer.optimizer_state().await?)?;
        self.saved = Some(self.state.step);
        observer.event(Event::Saved { place: &place, step: self.state.step });
        Ok(())
    }

    /// Adds the name of the tensor to an error about a value that is not finite.
    async fn name_tensor(&self, trainer: &Trainer, error: EngineError) -> RunError {
        let EngineError::NotFinite { what } = error else { return error.into() };
        let tensor = trainer.not_finite().await.ok().flatten();
        RunError::NotFinite { step: self.state.step, what, tensor, checkpoint: self.store.newest() }
    }
}
