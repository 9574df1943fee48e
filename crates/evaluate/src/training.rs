//! Benchmarks of a model in training: its trainer scores them, so that no second copy of the weights is loaded.
//!
//! Each choice is computed by itself, in batches of sequences like those of an evaluation on held-out data. Rejected:
//! an engine beside the trainer, which shares the beginning of an item's choices and so is faster, but doubles the
//! memory.

use std::collections::BTreeMap;

use bayan_generate::text::Tokenizer;
use bayan_generate::{Likelihood, ScoredText};
use bayan_train::MicroBatch;
use bayan_train::engine::Trainer;

use crate::data::DataFolder;
use crate::encode::Encoder;
use crate::results::{Finished, group_scores};
use crate::run::{self, Backend, OnItem, Pending, Prepared, Settings};
use crate::suites::{self, Selection};
use crate::task::{Group, Kind};
use crate::{EvalError, Result, samples};

/// The seed of bootstrap samples, which no mean depends on.
const SEED: u64 = 1234;

/// A trainer that scores texts.
pub struct Training<'a> {
    /// The trainer.
    pub trainer: &'a mut Trainer,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Most tokens before the last one of a text.
    pub context: usize,
    /// Most sequences and most tokens of a batch, unless a single text is longer.
    pub batch: (usize, usize),
    /// Waits for what the trainer does.
    pub wait: &'a dyn Fn(Pending<'_>) -> Result<()>,
}

impl Backend for Training<'_> {
    fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer
    }

    fn context(&self) -> usize {
        self.context
    }

    /// Whether a text is the greedy one is not known here: no score of a suite counts it.
    fn score(&mut self, items: &[Vec<ScoredText>], _: OnItem<'_>) -> Result<Vec<Vec<Likelihood>>> {
        let texts: Vec<&ScoredText> = items.iter().flatten().collect();
        let mut sums: Vec<f64> = Vec::with_capacity(texts.len());
        let (sequences, tokens) = self.batch;
        let trainer = &mut *self.trainer;
        let work = async {
            let mut at = 0;
            while at < texts.len() {
                let (mut end, mut length) = (at, 0);
                while end < texts.len()
                    && (end == at || end - at < sequences && length + texts[end].ids.len() <= tokens)
                {
                    length += texts[end].ids.len();
                    end += 1;
                }
                let batch = MicroBatch::of_ends(texts[at..end].iter().map(|text| (text.ids.as_slice(), text.from)));
                let losses = trainer.sequence_losses(&batch).await;
                let losses = losses.map_err(|error| {
                    EvalError::unexpected(
                        "the trainer",
                        "log-likelihoods",
                        error.to_string(),
                        "leave out the benchmarks",
                    )
                })?;
                sums.extend(losses.iter().map(|loss| -loss));
                at = end;
            }
            Ok(())
        };
        (self.wait)(Box::pin(work))?;
        let mut rest = sums.into_iter().map(|sum| Likelihood { sum, greedy: false });
        Ok(items.iter().map(|texts| rest.by_ref().take(texts.len()).collect()).collect())
    }

    fn generate(&mut self, _: &[Vec<u32>], _: usize, _: &[&str], _: OnItem<'_>) -> Result<Vec<String>> {
        let remedy = "choose tasks with choices";
        Err(EvalError::unexpected("a model in training", "tasks with choices", "one that is answered in text", remedy))
    }
}

/// The benchmarks of a run of training: their items, ready to be scored again and again.
#[derive(Debug, Clone)]
pub struct Benchmarks {
    prepared: Vec<Prepared>,
    groups: Vec<Group>,
}

impl Benchmarks {
    /// Reads the items of tasks and groups, without examples.
    ///
    /// # Errors
    /// A name is unknown, a task is answered in text, or its data are not as its rule needs them.
    pub fn open(names: &[String], folder: &mut DataFolder, limit: Option<usize>) -> Result<Benchmarks> {
        let Selection { tasks, groups } = suites::select(names)?;
        let named = |group: &Group| {
            names.iter().any(|name| *name == group.full_name() || group.full_name().ends_with(&format!("/{name}")))
        };
        let groups: Vec<Group> = groups.into_iter().filter(named).collect();
        let settings = Settings { shots: Some(0), limit, ..Settings::default() };
        let mut prepared = Vec::with_capacity(tasks.len());
        for task in &tasks {
            if !matches!(task.kind, Kind::Choices) {
                let (expected, got) =
                    ("tasks with choices", format!("{}, which is answered in text", task.full_name()));
                return Err(EvalError::unexpected(
                    "eval",
                    expected,
                    got,
                    "score it after training with `bayan eval run`",
                ));
            }
            prepared.push(run::prepare(task, folder, &settings)?);
        }
        Ok(Benchmarks { prepared, groups })
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.prepared.iter().map(|own| own.items.len()).sum()
    }

    /// Tokens of the longest text, with a tokenizer and at most `context` tokens before the last one.
    ///
    /// # Errors
    /// An item cannot be encoded.
    pub fn longest(&self, tokenizer: &Tokenizer, context: usize) -> Result<usize> {
        let encoder = Encoder { tokenizer, context };
        let mut longest = 0;
        for own in &self.prepared {
            for item in &own.items {
                let encoded = encoder.pairs(own.task.protocol, &item.pairs(own.task.delimiter))?;
                longest = encoded.texts.iter().map(|text| text.ids.len()).fold(longest, usize::max);
            }
        }
        Ok(longest)
    }

    /// The scores of the groups that were named, and of the tasks in none of them, from 0 to 1, by name and metric.
    ///
    /// # Errors
    /// The model fails.
    pub fn score(&self, backend: &mut dyn Backend) -> Result<BTreeMap<String, f64>> {
        let mut finished = Vec::with_capacity(self.prepared.len());
        for own in &self.prepared {
            let lines = run::lines(backend, own, &own.items, &mut || ())?;
            let metrics = run::metric_names(&own.task);
            let of = |line: &String| {
                let place = own.task.full_name();
                samples::parse(line, &metrics).ok_or_else(|| {
                    EvalError::unexpected(
                        place,
                        "a sample",
                        "another line",
                        "this is a fault of the program; report it",
                    )
                })
            };
            finished.push(Finished { prepared: own, samples: lines.iter().map(of).collect::<Result<_>>()? });
        }
        let mut scores = BTreeMap::new();
        for group in &self.groups {
            for (metric, score) in group_scores(group, &finished, SEED) {
                scores.insert(format!("{}/{metric}", group.full_name()), score.value);
            }
        }
        let in_group = |one: &Finished<'_>| {
            let task = &one.prepared.task;
            self.groups.iter().any(|group| group.protocol == task.protocol && group.tasks.contains(&task.name))
        };
        for one in finished.iter().filter(|one| !in_group(one)) {
            for (metric, score) in one.scores() {
                scores.insert(format!("{}/{}", one.prepared.task.full_name(), metric.name()), score.value);
            }
        }
        Ok(scores)
    }
}
