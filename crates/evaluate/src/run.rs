//! A run: items to scores, scores to lines.
//!
//! Items are scored in batches of fixed rows, longest first, and a batch's lines are written together. A run that was
//! killed goes on after the last whole batch: the steps of the device are then the same, and so are the files.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bayan_generate::text::Tokenizer;
use bayan_generate::{Generation, Likelihood, Model, ScoredText, TokenScore};
use serde_json::Value;

use crate::encode::{Encoded, Encoder};
pub use crate::prepare::{Item, Prepared, Settings, check_columns, plan, prepare};
use crate::samples::{self, Sample};
use crate::task::{Kind, Protocol, Task};
use crate::{EvalError, Result};

/// Items that are scored and written together.
pub const BATCH: usize = 64;

/// What answers the items.
pub trait Backend {
    /// The tokenizer.
    fn tokenizer(&self) -> &Tokenizer;

    /// Most tokens of a text.
    fn context(&self) -> usize;

    /// The log-likelihoods of the texts of each item.
    ///
    /// # Errors
    /// The model fails.
    fn score(&mut self, items: &[Vec<ScoredText>], on_item: OnItem<'_>) -> Result<Vec<Vec<Likelihood>>>;

    /// Greedy continuations of prompts, of at most `tokens` tokens. They may end at the texts `stop`, or go on.
    ///
    /// # Errors
    /// The model fails.
    fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        tokens: usize,
        stop: &[&str],
        on_item: OnItem<'_>,
    ) -> Result<Vec<String>>;
}

/// Called when an item is done, for a progress bar: a backend may leave calls out.
pub type OnItem<'a> = &'a mut dyn FnMut();

/// How a model in this process computes the texts of an item.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scoring {
    /// Their common beginning once.
    #[default]
    Shared,
    /// Each by itself, to compare the speed.
    OneByOne,
    /// Each as a prompt whose log-probabilities a server is asked for: with the server's numbers to the last bit.
    AsServed,
}

/// A model in this process.
pub struct Local<'a> {
    /// The model, whose engine has two sequences or more.
    pub model: &'a mut Model,
    /// How the texts of an item are computed.
    pub scoring: Scoring,
    /// Waits for what the model does.
    pub wait: &'a dyn Fn(Pending<'_>) -> Result<()>,
}

/// Work of a model that has to be waited for.
pub type Pending<'a> = std::pin::Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

impl Backend for Local<'_> {
    fn tokenizer(&self) -> &Tokenizer {
        &self.model.tokenizer
    }

    fn context(&self) -> usize {
        let context = self.model.engine.context();
        // A server keeps a position for a new token.
        if self.scoring == Scoring::AsServed { context.saturating_sub(2).max(1) } else { context }
    }

    fn score(&mut self, items: &[Vec<ScoredText>], on_item: OnItem<'_>) -> Result<Vec<Vec<Likelihood>>> {
        let mut found = vec![Vec::new(); items.len()];
        let (model, scoring) = (&mut *self.model, self.scoring);
        let work = async {
            if scoring == Scoring::AsServed {
                for (texts, found) in items.iter().zip(&mut found) {
                    let prompts: Vec<&[u32]> = texts.iter().map(|text| text.ids.as_slice()).collect();
                    let scores = model.engine.score_prompts(&prompts, 1).await?;
                    *found = texts.iter().zip(&scores).map(|(text, scores)| likelihood(text, scores)).collect();
                    on_item();
                }
                return Ok(());
            }
            if scoring == Scoring::Shared {
                let mut keep = |item: usize, results: &[Likelihood]| {
                    found[item] = results.to_vec();
                    on_item();
                    ControlFlow::Continue(())
                };
                model.engine.likelihoods(items, &mut keep).await?;
                return Ok(());
            }
            for (texts, found) in items.iter().zip(&mut found) {
                for text in texts {
                    let single = [vec![text.clone()]];
                    let mut keep = |_: usize, results: &[Likelihood]| {
                        found.extend_from_slice(results);
                        ControlFlow::Continue(())
                    };
                    model.engine.likelihoods(&single, &mut keep).await?;
                }
                on_item();
            }
            Ok(())
        };
        (self.wait)(Box::pin(work))?;
        Ok(found)
    }

    fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        tokens: usize,
        stop: &[&str],
        on_item: OnItem<'_>,
    ) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        let model = &mut *self.model;
        // Special tokens are not part of texts, so that texts cannot end at them: their ids end answers.
        let special = stop.iter().filter_map(|text| model.tokenizer.id(text));
        let special: Vec<u32> = special.filter(|id| !model.stop.contains(id)).collect();
        let own = model.stop.len();
        model.stop.extend(special);
        let work = async {
            let stop = stop.iter().map(|text| (*text).to_owned()).collect();
            let generation = Generation { max_tokens: Some(tokens), stop, ..Default::default() };
            // An answer that begins when all sequences are taken has the place of one that ended.
            let mut begun = model.engine.sequences();
            let mut on_text = |index: usize, _: &str| {
                if index >= begun {
                    begun += 1;
                    on_item();
                }
                ControlFlow::Continue(())
            };
            let answers = model.generate_many(prompts, &generation, &mut on_text).await?;
            // Harnesses decode an answer as a whole, which replaces broken characters otherwise than a stream of text.
            let decoded = answers.iter().map(|answer| model.tokenizer.decode(&answer.ids, true));
            texts = decoded.collect::<std::result::Result<_, _>>()?;
            Ok(())
        };
        let done = (self.wait)(Box::pin(work));
        self.model.stop.truncate(own);
        done.map(|()| texts)
    }
}

/// The text before the first of these.
fn until<'a>(text: &'a str, stop: &[&str]) -> &'a str {
    let end = stop.iter().filter_map(|stop| text.find(stop)).min();
    &text[..end.unwrap_or(text.len())]
}

/// The log-likelihood of a text's end, from the scores of its tokens but the first.
fn likelihood(text: &ScoredText, scores: &[TokenScore]) -> Likelihood {
    let ends = scores.iter().skip(text.from - 1);
    ends.fold(Likelihood { sum: 0.0, greedy: true }, |all, score| Likelihood {
        sum: all.sum + f64::from(score.logprob),
        greedy: all.greedy && score.top.iter().all(|(_, best)| *best <= score.logprob),
    })
}

/// The lines of some items, in their order.
///
/// # Errors
/// An item cannot be encoded, or the model fails.
pub fn lines(
    backend: &mut dyn Backend,
    prepared: &Prepared,
    items: &[Item],
    on_item: OnItem<'_>,
) -> Result<Vec<String>> {
    let task = &prepared.task;
    let encoder = Encoder { tokenizer: backend.tokenizer(), context: backend.context() };
    let bad = |item: &Item, error: EvalError| match error {
        EvalError::Unexpected { what, expected, got, remedy } => {
            EvalError::Unexpected { what: format!("{}: {what}", item.row.place), expected, got, remedy }
        }
        other => other,
    };
    match task.kind {
        Kind::Choices => {
            let encode = |item: &Item| {
                encoder.pairs(task.protocol, &item.pairs(task.delimiter)).map_err(|error| bad(item, error))
            };
            let encoded = items.iter().map(encode).collect::<Result<Vec<Encoded>>>()?;
            // Items of similar lengths share steps.
            let mut order: Vec<usize> = (0..items.len()).collect();
            order.sort_by_key(|&at| std::cmp::Reverse(encoded[at].texts.iter().map(|text| text.ids.len()).max()));
            let sorted: Vec<Vec<ScoredText>> = order.iter().map(|&at| encoded[at].texts.clone()).collect();
            let found = backend.score(&sorted, on_item)?;
            let mut lines = vec![String::new(); items.len()];
            for (&at, found) in order.iter().zip(&found) {
                let tokens: Vec<usize> = encoded[at].texts.iter().map(|text| text.ids.len() - text.from).collect();
                lines[at] = samples::of_choices(task, &items[at], found, &tokens, encoded[at].truncated);
            }
            Ok(lines)
        }
        Kind::Generate { tokens, stop, extract } => {
            let special = prepared.special_tokens || task.protocol != Protocol::AceGpt;
            let prompt = |item: &Item| encoder.prompt(task.protocol, &item.prompt, special, tokens);
            let prompts = items.iter().map(prompt).collect::<Result<Vec<_>>>()?;
            let ids: Vec<Vec<u32>> = prompts.iter().map(|(ids, _)| ids.clone()).collect();
            let texts = backend.generate(&ids, tokens, stop, on_item)?;
            let of = |((item, text), (_, truncated)): ((&Item, &String), &(Vec<u32>, bool))| {
                samples::of_text(task, item, extract, until(text, stop), *truncated)
            };
            Ok(items.iter().zip(&texts).zip(&prompts).map(of).collect())
        }
    }
}

/// A folder of results.
#[derive(Debug)]
pub struct Output {
    folder: PathBuf,
    resumed: bool,
}

const PLAN: &str = "run.json";

impl Output {
    /// Opens the folder of a run. `plan` is all that decides its results; it is kept in `run.json`.
    ///
    /// # Errors
    /// The folder has a run already and `resume` is not set, or it is the run of another plan.
    pub fn open(folder: &Path, plan: &Value, resume: bool) -> Result<Output> {
        std::fs::create_dir_all(folder).map_err(|error| EvalError::io("create", folder, error))?;
        let file = folder.join(PLAN);
        let what = format!("--out {}", folder.display());
        if let Ok(text) = std::fs::read_to_string(&file) {
            if !resume {
                let remedy = "go on with --resume, or name another folder";
                return Err(EvalError::unexpected(what, "a new folder", "one with a run", remedy));
            }
            let before: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            if before != *plan {
                let differs = |key: &&String| before[key.as_str()] != plan[key.as_str()];
                let keys: Vec<&str> = plan
                    .as_object()
                    .into_iter()
                    .flat_map(|plan| plan.keys())
                    .filter(differs)
                    .map(String::as_str)
                    .collect();
                let got = format!("one that differs in {}", keys.join(", "));
                let remedy = "name another folder, or run with the same model, data and settings";
                return Err(EvalError::unexpected(what, "the run that was begun there", got, remedy));
            }
            return Ok(Output { folder: folder.to_owned(), resumed: true });
        }
        std::fs::write(&file, format!("{plan:#}\n")).map_err(|error| EvalError::io("write", &file, error))?;
        Ok(Output { folder: folder.to_owned(), resumed: false })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the folder had this run already.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Runs a task, or the rest of it, and reads its samples. `on_items` is called with the number of items that an
    /// earlier run has done, and then with that of new ones.
    ///
    /// # Errors
    /// An item cannot be scored, or the file cannot be written.
    pub fn run(
        &self,
        backend: &mut dyn Backend,
        prepared: &Prepared,
        on_items: &mut dyn FnMut(usize),
    ) -> Result<Vec<Sample>> {
        let path = samples::path(&self.folder, &prepared.task);
        let total = prepared.items.len();
        let done = if self.resumed { samples::keep_whole_batches(&path, BATCH, total)? } else { 0 };
        on_items(done);
        for batch in prepared.items[done..].chunks(BATCH) {
            let mut left = batch.len();
            let mut on_item = || {
                let count = left.min(1);
                left -= count;
                on_items(count);
            };
            samples::append(&path, &lines(backend, prepared, batch, &mut on_item)?)?;
            on_items(left);
        }
        samples::read(&path, &metric_names(&prepared.task))
    }
}

/// The names of a task's metrics.
pub fn metric_names(task: &Task) -> Vec<&'static str> {
    task.metrics.iter().map(|metric| metric.name()).collect()
}
