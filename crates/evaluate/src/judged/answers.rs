//! Answers: a model's side of the conversations of a set, one line for each question.
//!
//! Questions are answered in batches of fixed rows, turn by turn, so that a run that was killed goes on after the last
//! whole batch and ends with the same file.

use std::ops::ControlFlow;
use std::path::Path;

use bayan_generate::text::ChatInput;
use bayan_generate::{AnswerText, FinishReason, Request, SampleSettings, TokenScore};
use serde_json::{Map, Value, json};

use super::alrage;
use super::sets::{Asked, Limit, Questions, Rules, TOP_K};
use crate::data::{hash_text, python};
use crate::run::Local;
use crate::{EvalError, Result, samples};

/// Questions that are answered and written together.
pub const BATCH: usize = 16;

/// A question with its answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The question.
    pub asked: Asked,
    /// An answer to each turn.
    pub answers: Vec<String>,
    /// Why each answer ended: `stop`, `length` or `context_full`.
    pub finish: Vec<String>,
    /// The name of the model that answered.
    pub model: String,
}

impl Answered {
    /// An id of the answers, as FastChat's files have one: 22 characters that follow from what was answered.
    pub fn answer_id(&self) -> String {
        hash_text(&format!("{}\n{}\n{}", self.model, self.asked.id, self.answers.join("\n")))[..22].to_owned()
    }

    fn line(&self, temperature: f32) -> String {
        json!({"question_id": self.asked.id, "category": self.asked.category, "model_id": self.model,
            "turns": self.asked.turns, "answers": self.answers, "finish": self.finish,
            "reference": self.asked.reference, "temperature": f64::from((temperature * 10.0).round()) / 10.0,
            "doc": self.asked.row})
        .to_string()
    }

    fn parse(line: &str) -> Option<Answered> {
        let line: Value = serde_json::from_str(line).ok()?;
        let texts = |name: &str| -> Option<Vec<String>> {
            line[name].as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
        };
        let answered = Answered {
            asked: Asked {
                id: line.get("question_id")?.clone(),
                category: line["category"].as_str()?.to_owned(),
                turns: texts("turns")?,
                reference: texts("reference")?,
                row: line["doc"].as_object()?.clone(),
            },
            answers: texts("answers")?,
            finish: texts("finish")?,
            model: line["model_id"].as_str()?.to_owned(),
        };
        let turns = answered.asked.turns.len();
        (turns > 0 && answered.answers.len() == turns && answered.finish.len() == turns).then_some(answered)
    }
}

/// One turn of a conversation that a model is to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// What it belongs to, for messages.
    pub name: String,
    /// Messages with `role` and `content`, the last of the user.
    pub messages: Vec<Value>,
    /// Sampling temperature; 0: greedy.
    pub temperature: f32,
    /// Most tokens.
    pub limit: Limit,
    /// Seed of the sampler.
    pub seed: u64,
    /// The prompt for a checkpoint without a chat template, in place of a template that is guessed or missing.
    pub plain: Option<String>,
}

impl Turn {
    /// The sampler's settings.
    pub fn sampling(&self) -> SampleSettings {
        let top_k = if self.temperature > 0.0 { TOP_K } else { 0 };
        SampleSettings { temperature: self.temperature, top_k, seed: self.seed, ..SampleSettings::default() }
    }
}

/// An answer, and why it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The text.
    pub text: String,
    /// `stop`, `length` or `context_full`.
    pub finish: String,
}

/// What answers turns.
pub trait Answerer {
    /// An answer to each of the turns, in their order.
    ///
    /// # Errors
    /// The model has no chat template, a conversation is longer than its context, or it fails.
    fn answer(&mut self, turns: &[Turn]) -> Result<Vec<Reply>>;
}

impl Answerer for Local<'_> {
    fn answer(&mut self, turns: &[Turn]) -> Result<Vec<Reply>> {
        let model = &mut *self.model;
        let mut prompts = Vec::with_capacity(turns.len());
        for turn in turns {
            let ids = match &turn.plain {
                None => model.chat_prompt(&turn.messages)?,
                Some(plain) => {
                    let own = model.template.as_ref().filter(|template| !template.is_guessed());
                    let rendered = own.map(|template| template.render(&ChatInput::new(turn.messages.clone())));
                    // lighteval adds the tokenizer's special tokens in both cases.
                    model.tokenizer.encode(&rendered.unwrap_or_else(|| Ok(plain.clone()))?, true)?
                }
            };
            if ids.len() >= model.engine.context() {
                let (expected, got) = (format!("less than {} tokens", model.engine.context()), ids.len().to_string());
                return Err(EvalError::unexpected(&turn.name, expected, got, "use a larger --context"));
            }
            prompts.push(ids);
        }
        let stop = model.stop.clone();
        let request = |(turn, ids): (&Turn, &Vec<u32>)| match turn.limit {
            Limit::New(tokens) => tokens,
            Limit::Whole(tokens) => tokens.saturating_sub(ids.len()).max(1),
        };
        let limits: Vec<usize> = turns.iter().zip(&prompts).map(request).collect();
        let requests: Vec<Request<'_>> = turns
            .iter()
            .zip(&prompts)
            .zip(&limits)
            .map(|((turn, prompt), &max_tokens)| Request {
                prompt,
                settings: turn.sampling(),
                bias: &[],
                stop: &stop,
                max_tokens,
                grammar: None,
                scores: None,
            })
            .collect();
        let mut texts: Vec<AnswerText> = turns.iter().map(|_| AnswerText::new(&model.tokenizer, &[], false)).collect();
        let mut replies = vec![Reply { text: String::new(), finish: String::new() }; turns.len()];
        let (engine, mut failure) = (&mut model.engine, None);
        let work = async {
            let mut on_token = |index: usize, id: u32, _: Option<&TokenScore>| match texts[index].push(id) {
                Ok(piece) => {
                    replies[index].text.push_str(&piece);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            };
            let usages = engine.generate_many(&requests, &mut on_token).await?;
            for ((reply, text), usage) in replies.iter_mut().zip(&mut texts).zip(usages) {
                reply.text.push_str(&text.end());
                reply.finish = finish_name(usage.finish).to_owned();
            }
            Ok(())
        };
        (self.wait)(Box::pin(work))?;
        failure.map_or(Ok(replies), |error| Err(error.into()))
    }
}

fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Length => "length",
        FinishReason::ContextFull => "context_full",
        _ => "stop",
    }
}

/// Answers the questions of a set, or the rest of them, and reads the file of answers. `on_questions` is called with
/// the number of newly answered questions after each batch.
///
/// # Errors
/// The model fails, or the file cannot be written.
pub fn run(
    path: &Path,
    questions: &Questions,
    model: &str,
    seed: u64,
    resumed: bool,
    answerer: &mut dyn Answerer,
    on_questions: &mut dyn FnMut(usize),
) -> Result<Vec<Answered>> {
    let total = questions.asked.len();
    let done = if resumed { samples::keep_whole_batches(path, BATCH, total)? } else { 0 };
    on_questions(done);
    for (at, batch) in questions.asked.chunks(BATCH).enumerate().skip(done / BATCH).filter(|_| done < total) {
        let first = (at * BATCH) as u64;
        let lines = answer_batch(questions, batch, first, model, seed, answerer)?;
        samples::append(path, &lines)?;
        on_questions(batch.len());
    }
    read(path)
}

fn answer_batch(
    questions: &Questions,
    batch: &[Asked],
    first: u64,
    model: &str,
    seed: u64,
    answerer: &mut dyn Answerer,
) -> Result<Vec<String>> {
    let rules = questions.set.rules;
    let mut answered: Vec<Answered> = batch
        .iter()
        .map(|asked| Answered { asked: asked.clone(), answers: vec![], finish: vec![], model: model.to_owned() })
        .collect();
    let most = batch.iter().map(|asked| asked.turns.len()).max().unwrap_or(0);
    for turn in 0..most {
        let open: Vec<usize> = (0..batch.len()).filter(|&at| turn < batch[at].turns.len()).collect();
        let turns: Vec<Turn> = open
            .iter()
            .map(|&at| {
                let asked = &batch[at];
                Turn {
                    name: format!("{}, question {}, turn {}", questions.set.name, asked.id, turn + 1),
                    messages: conversation(rules, asked, &answered[at].answers),
                    temperature: rules.temperature(&asked.category),
                    limit: rules.limit(),
                    // Each answer has a seed of its own, whatever it is computed together with.
                    seed: seed.wrapping_add(2 * (first + at as u64) + turn as u64),
                    plain: (rules == Rules::Lighteval).then(|| alrage::plain(&asked.turns[turn])),
                }
            })
            .collect();
        for (&at, reply) in open.iter().zip(answerer.answer(&turns)?) {
            // lighteval keeps white space around an answer.
            let text = if rules == Rules::Lighteval { &reply.text } else { python::strip(&reply.text) };
            answered[at].answers.push(text.to_owned());
            answered[at].finish.push(reply.finish);
        }
    }
    Ok(answered.iter().map(|one| one.line(rules.temperature(&one.asked.category))).collect())
}

/// The messages up to the first turn without an answer.
fn conversation(rules: Rules, asked: &Asked, answers: &[String]) -> Vec<Value> {
    let mut messages = Vec::new();
    for (turn, text) in asked.turns.iter().take(answers.len() + 1).enumerate() {
        let text = if rules == Rules::Lighteval { &alrage::message(text) } else { text };
        messages.push(json!({"role": "user", "content": text}));
        if let Some(answer) = answers.get(turn) {
            messages.push(json!({"role": "assistant", "content": answer}));
        }
    }
    messages
}

/// Reads a file of answers that a run wrote.
///
/// # Errors
/// The file cannot be read, or a line is no answer.
pub fn read(path: &Path) -> Result<Vec<Answered>> {
    let text = std::fs::read_to_string(path).map_err(|error| EvalError::io("read", path, error))?;
    let line = |(number, line): (usize, &str)| {
        Answered::parse(line).ok_or_else(|| {
            let what = format!("{}: line {}", path.display(), number + 1);
            EvalError::unexpected(what, "answers of `bayan eval run`", "another line", "run the set again")
        })
    };
    text.lines().enumerate().map(line).collect()
}

/// Answers of another model to the same questions, from a run's file or a published one: FastChat's `model_answer`
/// (`choices`), LLMZoo's answers (`text`), AlpacaEval's outputs (`instruction`, `output`). They are returned in the
/// order of the questions; the name of the model is the file's, or the file's name.
///
/// # Errors
/// The file cannot be read, or a question has no answer in it.
pub fn baseline(path: &Path, questions: &[Answered]) -> Result<Vec<Answered>> {
    let what = path.display().to_string();
    let mut found: Vec<(String, Vec<String>, Option<String>)> = Vec::new();
    for row in bayan_train::data::open_rows(path)? {
        let row = row.map_err(|error| match error {
            bayan_train::data::RowError::Bad(row) => EvalError::Row(row),
            bayan_train::data::RowError::Fatal(error) => error.into(),
        })?;
        let Some((key, answers)) = answers_of(&row.fields) else {
            let expected = "`question_id` with `choices`, `answers` or `text`, or `instruction` with `output`";
            let names: Vec<&str> = row.fields.keys().map(String::as_str).take(20).collect();
            return Err(EvalError::unexpected(row.place.to_string(), expected, names.join(", "), "check the baseline"));
        };
        let name = ["model_id", "generator"].iter().find_map(|name| row.fields.get(*name)?.as_str().map(str::to_owned));
        found.push((key, answers, name));
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let of = |own: &Answered| {
        let keys = [own.asked.id.to_string(), own.asked.turns[0].clone()];
        let (_, answers, name) = found
            .iter()
            .find(|(key, answers, _)| keys.contains(key) && answers.len() >= own.asked.turns.len())
            .ok_or_else(|| {
                let expected = format!("{} answers to question {}", own.asked.turns.len(), own.asked.id);
                EvalError::unexpected(&what, expected, "none", "name the baseline's answers to the same questions")
            })?;
        Ok(Answered {
            asked: own.asked.clone(),
            answers: answers.clone(),
            finish: vec![String::new(); answers.len()],
            model: name.clone().unwrap_or_else(|| stem.clone()),
        })
    };
    questions.iter().map(of).collect()
}

/// The id or the instruction of a row, and its answers.
fn answers_of(row: &Map<String, Value>) -> Option<(String, Vec<String>)> {
    let texts = |value: &Value| -> Option<Vec<String>> {
        value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
    };
    if let (Some(instruction), Some(output)) = (row.get("instruction"), row.get("output")) {
        return Some((instruction.as_str()?.to_owned(), vec![output.as_str()?.to_owned()]));
    }
    let key = row.get("question_id")?.to_string();
    let answers = match (row.get("choices"), row.get("answers"), row.get("text")) {
        (Some(choices), ..) => texts(&choices[0]["turns"])?,
        (_, Some(answers), _) => texts(answers)?,
        (_, _, Some(text)) => vec![text.as_str()?.to_owned()],
        _ => return None,
    };
    Some((key, answers))
}
