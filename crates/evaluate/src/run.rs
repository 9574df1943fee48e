//! A run: rows to items, items to scores, scores to lines.
//!
//! Items are scored in batches of fixed rows, longest first, and a batch's lines are written together. A run that was
//! killed goes on after the last whole batch: the steps of the device are then the same, and so are the files.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bayan_generate::text::Tokenizer;
use bayan_generate::{Generation, Likelihood, Model, ScoredText};
use bayan_train::data::Row;
use serde_json::{Value, json};

use crate::data::{DataFolder, Fields, PythonRandom, Rows};
use crate::encode::{Encoded, Encoder};
use crate::prompt::prompt;
use crate::samples::{self, Sample};
use crate::task::{Kind, Protocol, Question, Shots, Task};
use crate::{EvalError, Result};

/// lm-evaluation-harness's seed for drawing examples, unless a user sets another.
const SHOTS_SEED: u64 = 1234;

/// Items that are scored and written together.
pub const BATCH: usize = 64;

/// What a user may choose.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Number of examples; `None`: the task's own.
    pub shots: Option<usize>,
    /// Only the first items of each task.
    pub limit: Option<usize>,
    /// Published names of columns, and the files' names.
    pub columns: Vec<(String, String)>,
    /// Put the tokenizer's special tokens before prompts of AceGPT's benchmarks.
    pub special_tokens: bool,
}

/// A row with its question and its prompt.
#[derive(Debug, Clone)]
pub struct Item {
    /// The row's number among the rows of the task, from 0.
    pub number: usize,
    /// The row.
    pub row: Row,
    /// The question.
    pub question: Question,
    /// The text before the choices, or before the answer.
    pub prompt: String,
}

/// A task with its items.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The task.
    pub task: Task,
    /// Its items.
    pub items: Vec<Item>,
    /// Number of rows of the split, before any limit.
    pub rows: usize,
    /// Number of examples before each question.
    pub shots: usize,
    /// SHA-256 of the files.
    pub hashes: BTreeMap<String, String>,
    /// As the user set it, for prompts of AceGPT's benchmarks.
    pub special_tokens: bool,
}

/// Reads a task's rows and builds its prompts.
///
/// # Errors
/// A file is missing, a row is not as the task's rule needs it, or there are fewer examples than asked for.
pub fn prepare(task: &Task, folder: &mut DataFolder, settings: &Settings) -> Result<Prepared> {
    let shots = settings.shots.unwrap_or(task.default_shots);
    let most = match task.shots {
        Shots::First(most) => most,
        Shots::FirstOthers | Shots::Random | Shots::RandomOthers => usize::MAX,
        Shots::None => 0,
    };
    if shots > most {
        let (expected, got) = (format!("at most {most} examples"), shots.to_string());
        let what = format!("--shots for {}", task.full_name());
        return Err(EvalError::unexpected(what, expected, got, "use fewer with --shots"));
    }
    let random = matches!(task.shots, Shots::Random | Shots::RandomOthers);
    let examples = match task.source.shots_split.filter(|_| shots > 0) {
        Some(split) => Some(rows_of(task, folder, split)?),
        None => None,
    };
    let own = rows_of(task, folder, task.source.split)?;
    let question = |row: &Row| {
        let fields = Fields::new(row, &settings.columns);
        (task.rule)(&fields).map_err(|problem| EvalError::Row(fields.bad(problem)))
    };
    let mut hashes = own.1;
    let mut pool: Vec<(&Row, Question)> = Vec::new();
    if let Some((_, own_hashes)) = &examples {
        hashes.extend(own_hashes.clone());
    }
    if let Some((rows, _)) = examples.as_ref().filter(|_| !random) {
        // One more than asked for, because a question is no example of itself.
        for row in rows.iter().take(shots + 1) {
            pool.push((row, question(row)?));
        }
    }
    let rows = own.0;
    let drawn_from: &[Row] = examples.as_ref().map_or(&rows, |(examples, _)| examples);
    let mut generator = PythonRandom::new(SHOTS_SEED);
    let mut items = Vec::new();
    for (number, row) in rows.iter().enumerate().take(settings.limit.unwrap_or(usize::MAX)) {
        let asked = question(row)?;
        let excluded = |example: &Row| task.shots == Shots::FirstOthers && example.fields == row.fields;
        let mut before: Vec<Question> =
            pool.iter().filter(|(row, _)| !excluded(row)).take(shots).map(|(_, example)| example.clone()).collect();
        if random && shots > 0 {
            let others = task.shots == Shots::RandomOthers;
            for at in generator.sample(drawn_from.len(), shots + usize::from(others)).unwrap_or_default() {
                if before.len() < shots && !(others && drawn_from[at].fields == row.fields) {
                    before.push(question(&drawn_from[at])?);
                }
            }
        }
        if before.len() < shots {
            let what = format!("examples of {}", task.full_name());
            let expected = format!("{shots} rows in `{}`", task.source.shots_split.unwrap_or(task.source.split));
            return Err(EvalError::unexpected(what, expected, before.len().to_string(), "use fewer with --shots"));
        }
        let prompt = prompt(task, &before, &asked);
        items.push(Item { number, row: row.clone(), question: asked, prompt });
    }
    if items.is_empty() {
        let what = format!("split `{}` of {}", task.source.split, task.full_name());
        return Err(EvalError::unexpected(what, "one row or more", "none", "check the files in the data folder"));
    }
    let special_tokens = settings.special_tokens;
    Ok(Prepared { task: task.clone(), items, rows: rows.len(), shots, hashes, special_tokens })
}

/// The rows of a split, those of the task's topic alone.
fn rows_of(task: &Task, folder: &mut DataFolder, split: &str) -> Result<(Rc<Vec<Row>>, BTreeMap<String, String>)> {
    let Rows { rows, hashes } = folder.read(&task.source, split)?;
    let Some(topic) = &task.source.topic else { return Ok((rows, (*hashes).clone())) };
    let mut own = Vec::new();
    for row in rows.iter() {
        let fields = Fields::new(row, &[]);
        let id = fields.text("id").map_err(|problem| EvalError::Row(fields.bad(problem)))?;
        if id.split('-').next() == Some(topic.as_str()) {
            own.push(row.clone());
        }
    }
    Ok((Rc::new(own), (*hashes).clone()))
}

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
    fn score(&mut self, items: &[Vec<ScoredText>]) -> Result<Vec<Vec<Likelihood>>>;

    /// Greedy continuations of prompts.
    ///
    /// # Errors
    /// The model fails.
    fn generate(&mut self, prompts: &[Vec<u32>], tokens: usize) -> Result<Vec<String>>;
}

/// A model in this process.
pub struct Local<'a> {
    /// The model, whose engine has two sequences or more.
    pub model: &'a mut Model,
    /// Compute each text by itself, to compare the speed.
    pub one_by_one: bool,
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
        self.model.engine.context()
    }

    fn score(&mut self, items: &[Vec<ScoredText>]) -> Result<Vec<Vec<Likelihood>>> {
        let mut found = vec![Vec::new(); items.len()];
        let (model, one_by_one) = (&mut *self.model, self.one_by_one);
        let work = async {
            if !one_by_one {
                let mut keep = |item: usize, results: &[Likelihood]| {
                    found[item] = results.to_vec();
                    ControlFlow::Continue(())
                };
                return Ok(model.engine.likelihoods(items, &mut keep).await?);
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
            }
            Ok(())
        };
        (self.wait)(Box::pin(work))?;
        Ok(found)
    }

    fn generate(&mut self, prompts: &[Vec<u32>], tokens: usize) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        let model = &mut *self.model;
        let work = async {
            let generation = Generation { max_tokens: Some(tokens), ..Default::default() };
            let answers = model.generate_many(prompts, &generation, &mut |_, _| ControlFlow::Continue(())).await?;
            texts = answers.into_iter().map(|answer| answer.text).collect();
            Ok(())
        };
        (self.wait)(Box::pin(work))?;
        Ok(texts)
    }
}

/// The lines of some items, in their order.
///
/// # Errors
/// An item cannot be encoded, or the model fails.
pub fn lines(backend: &mut dyn Backend, prepared: &Prepared, items: &[Item]) -> Result<Vec<String>> {
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
                let choices: Vec<String> =
                    item.question.choices.iter().map(|choice| format!("{}{choice}", task.delimiter)).collect();
                encoder.choices(task.protocol, &item.prompt, &choices).map_err(|error| bad(item, error))
            };
            let encoded = items.iter().map(encode).collect::<Result<Vec<Encoded>>>()?;
            // Items of similar lengths share steps.
            let mut order: Vec<usize> = (0..items.len()).collect();
            order.sort_by_key(|&at| std::cmp::Reverse(encoded[at].texts.iter().map(|text| text.ids.len()).max()));
            let sorted: Vec<Vec<ScoredText>> = order.iter().map(|&at| encoded[at].texts.clone()).collect();
            let found = backend.score(&sorted)?;
            let mut lines = vec![String::new(); items.len()];
            for (&at, found) in order.iter().zip(&found) {
                let tokens: Vec<usize> = encoded[at].texts.iter().map(|text| text.ids.len() - text.from).collect();
                lines[at] = samples::of_choices(task, &items[at], found, &tokens, encoded[at].truncated);
            }
            Ok(lines)
        }
        Kind::Generate { tokens, extract } => {
            let special = prepared.special_tokens || task.protocol != Protocol::AceGpt;
            let prompts =
                items.iter().map(|item| encoder.prompt(&item.prompt, special, tokens)).collect::<Result<Vec<_>>>()?;
            let ids: Vec<Vec<u32>> = prompts.iter().map(|(ids, _)| ids.clone()).collect();
            let texts = backend.generate(&ids, tokens)?;
            let of = |((item, text), (_, truncated)): ((&Item, &String), &(Vec<u32>, bool))| {
                samples::of_text(task, item, extract, text, *truncated)
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

    /// Runs a task, or the rest of it, and reads its samples. `on_items` is called with the number of new items after
    /// each batch.
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
            samples::append(&path, &lines(backend, prepared, batch)?)?;
            on_items(batch.len());
        }
        samples::read(&path, &metric_names(&prepared.task))
    }
}

/// The names of a task's metrics.
pub fn metric_names(task: &Task) -> Vec<&'static str> {
    task.metrics.iter().map(|metric| metric.name()).collect()
}

/// What decides the results of a run, but for the model: tasks, examples, limits, and the hashes of all data.
pub fn plan(prepared: &[Prepared], settings: &Settings, seed: u64) -> Value {
    let tasks: Vec<Value> = prepared
        .iter()
        .map(|own| {
            let items = own.items.len();
            json!({"task": own.task.full_name(), "protocol": own.task.protocol.version(), "shots": own.shots,
                "items": items, "data": own.hashes})
        })
        .collect();
    json!({"tasks": tasks, "limit": settings.limit, "columns": settings.columns,
        "special_tokens": settings.special_tokens, "seed": seed})
}
