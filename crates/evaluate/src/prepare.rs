//! Rows to items: which rows are asked, which examples stand before them, and the prompt of each.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bayan_train::data::Row;
use serde_json::{Value, json};

use crate::data::{DataFolder, Fields, PythonRandom, Rows};
use crate::prompt::{Around, prompt};
use crate::task::{Protocol, Question, Shots, Shuffle, Task};
use crate::{EvalError, Result};

/// lm-evaluation-harness's seed for drawing examples, unless a user sets another.
const SHOTS_SEED: u64 = 1234;

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
    /// What is put around prompts.
    pub around: Around,
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
    /// The text before the choices, or before the answer; where choices stand in the prompt, that with the first one.
    pub prompt: String,
    /// The prompts with each choice in them; empty where choices follow the prompt.
    pub prompts: Vec<String>,
}

impl Item {
    /// The context and the scored text of each choice, with what stands between them.
    pub fn pairs(&self, delimiter: &str) -> Vec<(&str, String)> {
        let question = &self.question;
        match &question.ending {
            Some(ending) => {
                self.prompts.iter().map(|prompt| (prompt.as_str(), format!("{delimiter}{ending}"))).collect()
            }
            None => question.choices.iter().map(|own| (self.prompt.as_str(), format!("{delimiter}{own}"))).collect(),
        }
    }
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
    /// The rules with their version, and what was put around prompts.
    pub rules: String,
}

/// Checks that each column that `columns` names is in a file of some task.
///
/// # Errors
/// A column is in none of them.
pub fn check_columns(prepared: &[Prepared], columns: &[(String, String)]) -> Result<()> {
    let rows = || prepared.iter().flat_map(|one| &one.items).map(|item| &item.row.fields);
    let Some((ours, theirs)) = columns.iter().find(|(_, theirs)| !rows().any(|row| row.contains_key(theirs))) else {
        return Ok(());
    };
    let found: BTreeSet<&str> = rows().flat_map(|row| row.keys().map(String::as_str)).collect();
    let (what, got) = (format!("--columns {ours}={theirs}"), found.into_iter().collect::<Vec<_>>().join(", "));
    Err(EvalError::unexpected(what, format!("a column `{theirs}` in the data"), got, "name columns of the files"))
}

/// Reads a task's rows and builds its prompts.
///
/// # Errors
/// A file is missing, a row is not as the task's rule needs it, there are fewer examples than asked for, or the chat
/// template refuses the conversation.
pub fn prepare(task: &Task, folder: &mut DataFolder, settings: &Settings) -> Result<Prepared> {
    settings.around.check(task)?;
    let wanted = settings.shots.filter(|_| task.shots != Shots::Never);
    let shots = wanted.unwrap_or(task.default_shots);
    let most = match task.shots {
        Shots::First(most) => most,
        Shots::FirstOthers | Shots::Random | Shots::RandomOthers => usize::MAX,
        Shots::None | Shots::Never => 0,
    };
    if shots > most {
        let (expected, got) = (format!("at most {most} examples"), shots.to_string());
        let what = format!("--shots for {}", task.full_name());
        return Err(EvalError::unexpected(what, expected, got, "use fewer with --shots"));
    }
    let random = matches!(task.shots, Shots::Random | Shots::RandomOthers);
    // Their number decides the order of choices that are shuffled after them.
    let always = task.shuffle.is_some_and(|shuffle| shuffle.examples_first);
    let examples = match task.source.shots_split.filter(|_| shots > 0 || always) {
        Some(split) => Some(rows_of(task, folder, split, &settings.columns)?),
        None => None,
    };
    let (rows, mut hashes) = rows_of(task, folder, task.source.split, &settings.columns)?;
    let orders = Orders::new(task.shuffle, rows.len(), examples.as_ref().map_or(0, |(rows, _)| rows.len()));
    let question = |row: &Row, order: Option<&Vec<usize>>| {
        let plain = Fields::new(row, &settings.columns);
        let fields = order.map_or(plain, |order| plain.with_order(order));
        (task.rule)(&fields).map_err(|problem| EvalError::Row(fields.bad(problem)))
    };
    let mut pool: Vec<(&Row, Question)> = Vec::new();
    if let Some((_, own_hashes)) = &examples {
        hashes.extend(own_hashes.clone());
    }
    if let Some((rows, _)) = examples.as_ref().filter(|_| !random && shots > 0) {
        // One more than asked for, because a question is no example of itself.
        for (at, row) in rows.iter().enumerate().take(shots + 1) {
            pool.push((row, question(row, orders.examples.get(at))?));
        }
    }
    let drawn_from: &[Row] = examples.as_ref().map_or(&rows, |(examples, _)| examples);
    let mut generator = PythonRandom::new(SHOTS_SEED);
    let mut items = Vec::new();
    for (number, row) in rows.iter().enumerate().take(settings.limit.unwrap_or(usize::MAX)) {
        let asked = question(row, orders.questions.get(number))?;
        let excluded = |example: &Row| task.shots == Shots::FirstOthers && example.fields == row.fields;
        let mut before: Vec<Question> =
            pool.iter().filter(|(row, _)| !excluded(row)).take(shots).map(|(_, example)| example.clone()).collect();
        if random && shots > 0 {
            let others = task.shots == Shots::RandomOthers;
            for at in generator.sample(drawn_from.len(), shots + usize::from(others)).unwrap_or_default() {
                if before.len() < shots && !(others && drawn_from[at].fields == row.fields) {
                    before.push(question(&drawn_from[at], None)?);
                }
            }
        }
        if before.len() < shots {
            let what = format!("examples of {}", task.full_name());
            let expected = format!("{shots} rows in `{}`", task.source.shots_split.unwrap_or(task.source.split));
            return Err(EvalError::unexpected(what, expected, before.len().to_string(), "use fewer with --shots"));
        }
        let around = &settings.around;
        let with = |choice: &String| prompt(task, &before, &Question { text: choice.clone(), ..asked.clone() }, around);
        let mut prompts = Vec::new();
        if asked.ending.is_some() {
            prompts = asked.choices.iter().map(with).collect::<Result<_>>()?;
        }
        let prompt = match prompts.first() {
            Some(first) => first.clone(),
            None => prompt(task, &before, &asked, around)?,
        };
        items.push(Item { number, row: row.clone(), question: asked, prompt, prompts });
    }
    if items.is_empty() {
        let files: Vec<&str> = hashes.keys().map(String::as_str).collect();
        let what = format!("split `{}` of {}", task.source.split, task.full_name());
        let got = format!("none in {}", files.join(", "));
        return Err(EvalError::unexpected(what, "one row or more", got, "check the files in the data folder"));
    }
    let mut task = task.clone();
    if task.protocol == Protocol::LmEval && settings.around.template.is_some() {
        // The assistant's turn begins with the choice.
        task.delimiter = "";
    }
    let rules = format!("{}{}", task.protocol.version(), settings.around.note());
    let special_tokens = settings.special_tokens;
    Ok(Prepared { task, items, rows: rows.len(), shots, hashes, special_tokens, rules })
}

/// The orders that the choices of all rows are shuffled into.
#[derive(Debug, Default)]
struct Orders {
    questions: Vec<Vec<usize>>,
    examples: Vec<Vec<usize>>,
}

impl Orders {
    fn new(shuffle: Option<Shuffle>, questions: usize, examples: usize) -> Orders {
        let Some(Shuffle { seed, choices, examples_first }) = shuffle else { return Orders::default() };
        let mut generator = PythonRandom::new(seed);
        let mut drawn = |rows: usize| -> Vec<Vec<usize>> { (0..rows).map(|_| generator.shuffled(choices)).collect() };
        if examples_first {
            let examples = drawn(examples);
            return Orders { questions: drawn(questions), examples };
        }
        let questions = drawn(questions);
        Orders { examples: drawn(examples), questions }
    }
}

/// The rows of a split that belong to the task.
fn rows_of(
    task: &Task,
    folder: &mut DataFolder,
    split: &str,
    columns: &[(String, String)],
) -> Result<(Rc<Vec<Row>>, BTreeMap<String, String>)> {
    let Rows { rows, hashes } = folder.read(&task.source, split)?;
    let Some(part) = &task.source.part else { return Ok((rows, (*hashes).clone())) };
    let mut own = Vec::new();
    for row in rows.iter() {
        let fields = Fields::new(row, columns);
        if part.has(&fields).map_err(|problem| EvalError::Row(fields.bad(problem)))? {
            own.push(row.clone());
        }
    }
    Ok((Rc::new(own), (*hashes).clone()))
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
    let mut plan = json!({"tasks": tasks, "limit": settings.limit, "columns": settings.columns,
        "special_tokens": settings.special_tokens, "seed": seed});
    settings.around.describe(&mut plan);
    plan
}
