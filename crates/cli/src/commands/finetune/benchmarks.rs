//! The benchmarks of a run (`--eval`): opened before the weights are loaded, scored where the run evaluates.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use bayan_evaluate::run::Pending;
use bayan_evaluate::training::{Benchmarks, Training};
use bayan_generate::text::Tokenizer;
use bayan_gpu::block_on;
use bayan_train::engine::Trainer;
use bayan_train::run::RunError;
use bayan_train::{Event, Observer, Recipe};

use super::show::RunPrinter;
use crate::commands::eval::data_folder;

/// The recipe's benchmarks, if it has any.
///
/// # Errors
/// A name is unknown, or the data are not as the benchmark needs them.
pub fn open(recipe: &Recipe) -> Result<Option<Benchmarks>> {
    let (Some(names), Some(data)) = (&recipe.eval, &recipe.eval_data) else { return Ok(None) };
    let names: Vec<String> = names.split(',').map(|name| name.trim().to_owned()).collect();
    let limit = recipe.eval_limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut folder = data_folder(Some(Path::new(data))).context("--eval-data")?;
    Ok(Some(Benchmarks::open(&names, &mut folder, limit).context("--eval")?))
}

/// Prints a run's events, and scores its benchmarks.
pub struct Watcher<'a> {
    /// Prints.
    pub printer: RunPrinter,
    /// The benchmarks.
    pub benchmarks: Option<&'a Benchmarks>,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Most tokens before the last one of a text.
    pub context: usize,
    /// Most sequences and tokens of a batch.
    pub batch: (usize, usize),
}

impl Observer for Watcher<'_> {
    fn event(&mut self, event: Event<'_>) {
        self.printer.event(event);
    }

    fn benchmarks(&mut self, trainer: &mut Trainer, _: u64) -> Result<BTreeMap<String, f64>, RunError> {
        let Some(benchmarks) = self.benchmarks else {
            return Err(RunError::Benchmark("the recipe names some and none were opened".into()));
        };
        let wait = |work: Pending<'_>| block_on(work);
        let (tokenizer, context, batch) = (self.tokenizer, self.context, self.batch);
        let mut backend = Training { trainer, tokenizer, context, batch, wait: &wait };
        benchmarks.score(&mut backend).map_err(|error| RunError::Benchmark(error.to_string()))
    }

    fn stop(&mut self) -> bool {
        self.printer.stop()
    }
}
