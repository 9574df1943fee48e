//! `bayan conformance`: answers a file of JSON requests, so that any runtime can be compared with the same references.
//!
//! The model is loaded when the first request needs it: tokenizer and template requests also work for checkpoints of
//! unsupported architectures, and requests that need the model are then answered as unsupported.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow};
use bayan_generate::TextPipeline;
use bayan_generate::text::{ChatInput, TokenStream};
use bayan_generate::{Model, SampleSettings};
use bayan_gpu::block_on;
use bayan_models::{Adapter, LoadOptions, ModelError};
use bayan_train::TrainedWeights;
use bayan_train::engine::{Trainer, TrainerOptions, dpo, lora_grads, lora_train};
use bayan_weights::{DirectorySource, Policy, WeightsError};
use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::support::options::{AdapterArg, ModelArgs};
use crate::support::text;
use crate::support::{open, output};

/// Flags of `bayan conformance`.
#[derive(Debug, Args)]
pub struct ConformanceArgs {
    /// File with the requests: {"version": 1, "model": DIR, "requests": [{"id": …, "op": …}]}
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Debug, Deserialize)]
struct File {
    version: u32,
    model: PathBuf,
    #[serde(default)]
    adapter: Option<PathBuf>,
    requests: Vec<Request>,
}

#[derive(Debug, Deserialize)]
struct Request {
    id: Value,
    #[serde(flatten)]
    op: Op,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Op {
    Logits {
        ids: Vec<u32>,
        #[serde(default = "twenty")]
        top_k: usize,
        #[serde(default)]
        positions: Option<String>,
        #[serde(default)]
        full_last: bool,
    },
    Generate {
        ids: Vec<u32>,
        max_new_tokens: usize,
        #[serde(default)]
        ignore_eos: bool,
    },
    Nll {
        ids: Vec<u32>,
    },
    Encode {
        text: String,
        #[serde(default)]
        add_special_tokens: bool,
    },
    Decode {
        ids: Vec<u32>,
        #[serde(default)]
        skip_special_tokens: bool,
    },
    Stream {
        ids: Vec<u32>,
        #[serde(default)]
        skip_special_tokens: bool,
    },
    Chat {
        messages: Vec<Value>,
        #[serde(default)]
        tools: Option<Vec<Value>>,
        #[serde(default)]
        add_generation_prompt: bool,
        #[serde(default)]
        kwargs: Map<String, Value>,
    },
    LoraGrads(Map<String, Value>),
    LoraTrain(Map<String, Value>),
    Dpo(Map<String, Value>),
    #[serde(other)]
    Unknown,
}

fn twenty() -> usize {
    20
}

impl Op {
    /// Positions of the context that the request needs; `None` for requests without a model.
    fn positions(&self) -> Option<usize> {
        match self {
            Op::Logits { ids, .. } | Op::Nll { ids } => Some(ids.len()),
            Op::Generate { ids, max_new_tokens, .. } => Some(ids.len().saturating_add(*max_new_tokens)),
            _ => None,
        }
    }
}

/// Why a request has no answer.
enum Refusal {
    /// A feature that this version does not have.
    Unsupported(String),
    /// An error.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Refusal {
        let architecture = |e: &ModelError| {
            matches!(e, ModelError::Architecture { .. } | ModelError::Weights(WeightsError::Unsupported { .. }))
        };
        let unsupported = error.chain().any(|cause| {
            let by_model = cause.downcast_ref::<ModelError>().is_some_and(architecture);
            let by_generate = match cause.downcast_ref::<bayan_generate::GenerateError>() {
                Some(bayan_generate::GenerateError::Model(e)) => architecture(e),
                _ => false,
            };
            by_model || by_generate || matches!(cause.downcast_ref(), Some(WeightsError::Unsupported { .. }))
        });
        if unsupported { Refusal::Unsupported(output::describe(&error)) } else { Refusal::Failed(error) }
    }
}

/// Parts that are opened when first needed. A failure is kept and returned to every request that needs the part.
struct Session<'a> {
    args: &'a ModelArgs,
    /// The initial adapter of training requests.
    adapter: Option<PathBuf>,
    trainer: Option<Result<(Trainer, TrainedWeights), (bool, String)>>,
    context: usize,
    text: Option<Result<TextPipeline, String>>,
    model: Option<Result<Model, (bool, String)>>,
}

/// Answers each request with one line of JSON.
///
/// # Errors
/// The request file cannot be read. Failures of single requests are answers.
pub fn run(args: &ConformanceArgs) -> Result<ExitCode> {
    let text =
        std::fs::read_to_string(&args.request).with_context(|| format!("cannot read {}", args.request.display()))?;
    let file: File =
        serde_json::from_str(&text).with_context(|| format!("{}: not a request file", args.request.display()))?;
    if file.version != 1 {
        return Err(anyhow!(
            "{}: expected version 1, got {}; update the program or the file",
            args.request.display(),
            file.version
        ));
    }
    let mut model = args.model.clone();
    model.checkpoint.model = Some(file.model);
    model.adapter.extend(file.adapter.clone().map(|path| AdapterArg { path, scale: 1.0 }));
    let context = file.requests.iter().filter_map(|r| r.op.positions()).max().unwrap_or(0).clamp(2, 1 << 20);
    let mut session = Session { args: &model, adapter: file.adapter, trainer: None, context, text: None, model: None };
    let responses: Vec<Value> = file.requests.iter().map(|request| session.respond(request)).collect();
    output::line(&json!({ "responses": responses }).to_string())?;
    Ok(ExitCode::SUCCESS)
}

impl Session<'_> {
    fn respond(&mut self, request: &Request) -> Value {
        let mut response = match self.answer(request) {
            Ok(response) => response,
            Err(Refusal::Unsupported(reason)) => json!({"unsupported": true, "reason": reason}),
            Err(Refusal::Failed(error)) => json!({"error": output::describe(&error)}),
        };
        response["id"] = request.id.clone();
        response
    }

    fn text(&mut self) -> Result<&TextPipeline, Refusal> {
        let args = self.args;
        let text = self.text.get_or_insert_with(|| text::pipeline(&args.checkpoint).map_err(|e| output::describe(&e)));
        text.as_ref().map_err(|reason| Refusal::Failed(anyhow!("{reason}")))
    }

    fn model(&mut self) -> Result<&mut Model, Refusal> {
        let (args, context) = (self.args, self.context);
        let model = self.model.get_or_insert_with(|| match open::model(args, Some(context)) {
            Ok(loaded) => Ok(loaded.model),
            Err(error) => Err(match Refusal::from(error) {
                Refusal::Unsupported(reason) => (true, reason),
                Refusal::Failed(error) => (false, output::describe(&error)),
            }),
        });
        model.as_mut().map_err(|(unsupported, reason)| match unsupported {
            true => Refusal::Unsupported(reason.clone()),
            false => Refusal::Failed(anyhow!("{reason}")),
        })
    }

    /// The base in f32 arithmetic and the trained adapter, beside the model of the other requests.
    fn trainer(&mut self) -> Result<&mut (Trainer, TrainedWeights), Refusal> {
        if self.trainer.is_none() {
            let opened = open_trainer(self.args, self.adapter.as_deref());
            self.trainer = Some(opened.map_err(|error| match Refusal::from(error) {
                Refusal::Unsupported(reason) => (true, reason),
                Refusal::Failed(error) => (false, output::describe(&error)),
            }));
        }
        match self.trainer.as_mut() {
            Some(Ok(trainer)) => Ok(trainer),
            Some(Err((true, reason))) => Err(Refusal::Unsupported(reason.clone())),
            Some(Err((false, reason))) => Err(Refusal::Failed(anyhow!("{reason}"))),
            None => Err(Refusal::Failed(anyhow!("no trainer"))),
        }
    }

    fn train(&mut self, id: &Value, fields: &Map<String, Value>, what: Training) -> Result<Value, Refusal> {
        let mut request = Value::Object(fields.clone());
        request["id"] = id.clone();
        let (trainer, initial) = self.trainer()?;
        let answer = match what {
            Training::Gradients => block_on(lora_grads(trainer, initial, &request)),
            Training::Steps => block_on(lora_train(trainer, initial, &request)),
            Training::Preferences => block_on(dpo(trainer, initial, &request)),
        };
        Ok(answer.map_err(anyhow::Error::from)?)
    }

    fn answer(&mut self, request: &Request) -> Result<Value, Refusal> {
        match &request.op {
            Op::Logits { ids, top_k, positions, full_last } => {
                let all = positions.as_deref() == Some("all");
                let rows = block_on(self.model()?.engine.logits(ids, all)).map_err(anyhow::Error::from)?;
                Ok(logits_response(&rows, *top_k, *full_last))
            }
            Op::Generate { ids, max_new_tokens, ignore_eos } => {
                Ok(json!({ "ids": greedy(self.model()?, ids, *max_new_tokens, *ignore_eos)? }))
            }
            Op::Nll { ids } => {
                let rows = block_on(self.model()?.engine.logits(ids, true)).map_err(anyhow::Error::from)?;
                let nll: Vec<f64> = rows
                    .iter()
                    .zip(ids.iter().skip(1))
                    .map(|(row, &next)| negative_log_probability(row, next))
                    .collect();
                Ok(json!({ "nll": nll }))
            }
            Op::Encode { text, add_special_tokens } => Ok(
                json!({ "ids": self.text()?.tokenizer.encode(text, *add_special_tokens).map_err(anyhow::Error::from)? }),
            ),
            Op::Decode { ids, skip_special_tokens } => Ok(
                json!({ "text": self.text()?.tokenizer.decode(ids, *skip_special_tokens).map_err(anyhow::Error::from)? }),
            ),
            Op::Stream { ids, skip_special_tokens } => {
                let mut stream = TokenStream::new(&self.text()?.tokenizer, *skip_special_tokens);
                let mut pieces = Vec::with_capacity(ids.len() + 1);
                for &id in ids {
                    pieces.push(stream.push(id).map_err(anyhow::Error::from)?);
                }
                pieces.push(stream.flush());
                Ok(json!({ "pieces": pieces }))
            }
            Op::Chat { messages, tools, add_generation_prompt, kwargs } => {
                let input = ChatInput {
                    tools: tools.clone(),
                    add_generation_prompt: *add_generation_prompt,
                    kwargs: kwargs.clone(),
                    ..ChatInput::new(messages.clone())
                };
                Ok(
                    json!({ "text": self.text()?.template().map_err(anyhow::Error::from)?.render(&input).map_err(anyhow::Error::from)? }),
                )
            }
            Op::LoraGrads(fields) => self.train(&request.id, fields, Training::Gradients),
            Op::LoraTrain(fields) => self.train(&request.id, fields, Training::Steps),
            Op::Dpo(fields) => self.train(&request.id, fields, Training::Preferences),
            Op::Unknown => Err(Refusal::Unsupported("this version has no such operation".into())),
        }
    }
}

/// A training request.
#[derive(Debug, Clone, Copy)]
enum Training {
    Gradients,
    Steps,
    Preferences,
}

/// Longest sequence of training requests.
const TRAINING_CONTEXT: usize = 4096;

fn open_trainer(args: &ModelArgs, adapter: Option<&Path>) -> Result<(Trainer, TrainedWeights)> {
    let directory = adapter.context(
        "training requests begin with an adapter: expected `adapter`, the directory of one, in the request file",
    )?;
    let adapter = block_on(Adapter::open(Rc::new(DirectorySource::new(directory)?)))?;
    let checkpoint = open::checkpoint(args.checkpoint.model.as_deref())?;
    let context = bayan_models::sizes(&checkpoint)?.max_position_embeddings.min(TRAINING_CONTEXT);
    let mut device = args.device.clone();
    device.disable.f16 = true;
    device.disable.dot = true;
    let gpu = crate::support::device::gpu(&device)?;
    let policy = args.quantize.map(Policy::for_format);
    let decoder =
        block_on(bayan_models::open(&checkpoint, Some(&gpu), &LoadOptions { context }, policy, &mut |_, _| {}))?;
    let options = TrainerOptions { context, ..TrainerOptions::default() };
    Ok((Trainer::new(Some(&gpu), decoder, &adapter, options)?, TrainedWeights::Adapter(Box::new(adapter))))
}

fn logits_response(rows: &[Vec<f32>], top_k: usize, full_last: bool) -> Value {
    let top: Vec<Vec<(usize, f32)>> = rows.iter().map(|row| best(row, top_k)).collect();
    let mut response = json!({ "top": top });
    if let (true, Some(last)) = (full_last, rows.last()) {
        response["last_logits"] = json!(last);
    }
    response
}

/// The largest logits, best first; equal ones are ordered by id.
fn best(row: &[f32], count: usize) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    order.into_iter().take(count).map(|id| (id, row[id])).collect()
}

fn negative_log_probability(row: &[f32], id: u32) -> f64 {
    let peak = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&logit| f64::from(logit - peak).exp()).sum();
    let logit = row.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    sum.ln() - f64::from(logit - peak)
}

fn greedy(model: &mut Model, ids: &[u32], max_new_tokens: usize, ignore_eos: bool) -> Result<Vec<u32>> {
    let stop: &[u32] = if ignore_eos { &[] } else { &model.stop };
    let mut new = Vec::new();
    let mut on_token = |id| {
        new.push(id);
        ControlFlow::Continue(())
    };
    model.engine.reset();
    block_on(model.engine.generate(ids, &SampleSettings::default(), &[], stop, max_new_tokens, &mut on_token))?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_survive_large_logits() {
        assert!((negative_log_probability(&[1000.0, 1000.0], 1) - std::f64::consts::LN_2).abs() < 1e-12);
        assert!((negative_log_probability(&[0.0, -1000.0], 1) - 1000.0).abs() < 1e-9);
        assert_eq!(negative_log_probability(&[0.0], 7), f64::INFINITY);
    }

    #[test]
    fn the_best_logits_come_first_and_ties_by_id() {
        assert_eq!(best(&[1.0, 3.0, 3.0, 2.0], 3), [(1, 3.0), (2, 3.0), (3, 2.0)]);
        assert_eq!(best(&[1.0], 5), [(0, 1.0)]);
    }
}
