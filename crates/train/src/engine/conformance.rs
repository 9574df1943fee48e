//! The training requests of conformance files: JSON in, JSON out, tensors in safetensors with PEFT's names.

use std::path::Path;

use bayan_tensor::ops::Hyper;
use serde_json::{Value, json};

use super::{EngineError, Trainer};
use crate::checkpoint::encode_arrays;
use crate::schedule::{Schedule, Scheduler};
use crate::{MicroBatch, TrainError, TrainedWeights};

const REMEDY: &str = "see the documentation of the conformance requests";

fn missing(field: &str, expected: &str, got: Option<&Value>) -> EngineError {
    let got = got.map_or("nothing".to_string(), |value| value.to_string().chars().take(80).collect());
    EngineError::input(field, expected, got, REMEDY)
}

fn integers(value: Option<&Value>, field: &str) -> Result<Vec<i64>, EngineError> {
    let list =
        value.and_then(Value::as_array).and_then(|list| list.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>());
    list.ok_or_else(|| missing(field, "a list of whole numbers", value))
}

fn number(of: &Value, field: &str) -> Result<f64, EngineError> {
    of.get(field).and_then(Value::as_f64).ok_or_else(|| missing(field, "a number", of.get(field)))
}

/// Appends a sequence to a batch.
fn push(batch: &mut MicroBatch, ids: &[i64], labels: &[i64]) -> Result<(), EngineError> {
    if ids.is_empty() || ids.len() != labels.len() {
        return Err(EngineError::input("labels", format!("{} values", ids.len()), labels.len().to_string(), REMEDY));
    }
    let number = batch.starts.len() as u32;
    batch.starts.push(batch.ids.len() as u32);
    for (position, (&id, &label)) in ids.iter().zip(labels).enumerate() {
        let id = u32::try_from(id)
            .map_err(|_| EngineError::input("input_ids", "whole numbers from 0 on", id.to_string(), REMEDY))?;
        batch.ids.push(id);
        batch.labels.push(i32::try_from(label).unwrap_or(-100).max(-100));
        batch.positions.push(position as u32);
        batch.sequences.push(number);
    }
    // The first token of a sequence cannot be predicted: nothing precedes it.
    let first = batch.ids.len() - ids.len();
    batch.labels[first] = -100;
    Ok(())
}

/// Converts a padded batch to packed sequences: masked tokens at the ends are dropped.
pub(super) fn batch(value: &Value) -> Result<MicroBatch, EngineError> {
    let rows = |field: &str| {
        value.get(field).and_then(Value::as_array).ok_or_else(|| missing(field, "a list of lists", value.get(field)))
    };
    let (ids, labels, masks) = (rows("input_ids")?, rows("labels")?, rows("attention_mask")?);
    if ids.len() != labels.len() || ids.len() != masks.len() {
        return Err(EngineError::input(
            "batch",
            "as many labels and masks as input_ids",
            format!("{} and {}", labels.len(), masks.len()),
            REMEDY,
        ));
    }
    let mut packed = MicroBatch::default();
    for ((ids, labels), mask) in ids.iter().zip(labels).zip(masks) {
        let (ids, labels, mask) = (
            integers(Some(ids), "input_ids")?,
            integers(Some(labels), "labels")?,
            integers(Some(mask), "attention_mask")?,
        );
        let start = mask.iter().position(|&m| m != 0).unwrap_or(0);
        let end = mask.iter().rposition(|&m| m != 0).map_or(0, |last| last + 1);
        let (Some(ids), Some(labels), Some(mask)) = (ids.get(start..end), labels.get(start..end), mask.get(start..end))
        else {
            return Err(EngineError::input(
                "attention_mask",
                "as many numbers as input_ids and labels",
                mask.len().to_string(),
                REMEDY,
            ));
        };
        if mask.contains(&0) {
            return Err(EngineError::input("attention_mask", "padding at the ends only", "a gap", REMEDY));
        }
        push(&mut packed, ids, labels)?;
    }
    Ok(packed)
}

fn write(request: &Value, name: &str, weights: &TrainedWeights) -> Result<String, EngineError> {
    let directory = request
        .get("out_dir")
        .and_then(Value::as_str)
        .ok_or_else(|| missing("out_dir", "a directory", request.get("out_dir")))?;
    let id = request.get("id").and_then(Value::as_str).unwrap_or("0");
    let safe: String = id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let path = Path::new(directory).join(format!("{name}_{safe}.safetensors"));
    let bytes = match weights {
        TrainedWeights::Adapter(adapter) => adapter.encode_weights()?,
        TrainedWeights::Full(arrays) => encode_arrays(&path, arrays).map_err(|error| {
            EngineError::input("weights", "finite numbers", error.to_string(), "lower the learning rate")
        })?,
    };
    let written = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&path, bytes));
    written.map_err(|source| {
        EngineError::input(
            "out_dir",
            "a directory that can be written to",
            TrainError::io("write", &path, source).to_string(),
            "choose another",
        )
    })?;
    Ok(path.display().to_string())
}

/// `lora_grads`: the mean loss of one batch and the gradient of every matrix, at the current weights.
///
/// # Errors
/// The request is incomplete, or [`Trainer::accumulate`] fails.
pub async fn lora_grads(
    trainer: &mut Trainer,
    initial: &TrainedWeights,
    request: &Value,
) -> Result<Value, EngineError> {
    let batch = batch(request.get("batch").unwrap_or(&Value::Null))?;
    trainer.load_weights(initial)?;
    trainer.clear_gradients();
    let loss = trainer.accumulate(&batch, 1.0 / batch.target_count().max(1) as f64).await?;
    let file = write(request, "grads", &trainer.gradients().await?)?;
    trainer.clear_gradients();
    Ok(json!({"id": request.get("id"), "loss": loss, "grads_file": file}))
}

/// Parses warm-up and total steps from "transformers.get_cosine_schedule_with_warmup(opt, 3, 20): …".
fn schedule(optimizer: &Value, learning_rate: f64, steps: u64) -> Result<Schedule, EngineError> {
    let text = optimizer.get("schedule").and_then(Value::as_str).unwrap_or("constant");
    let scheduler = ["cosine", "linear", "constant"].into_iter().find(|kind| text.contains(kind));
    let scheduler = match scheduler {
        Some("cosine") => Scheduler::Cosine,
        Some("linear") => Scheduler::Linear,
        Some(_) => Scheduler::Constant,
        None => return Err(missing("optimizer.schedule", "cosine, linear or constant", optimizer.get("schedule"))),
    };
    let arguments = text.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("", |(inside, _)| inside);
    let numbers: Vec<u64> = arguments.split(',').filter_map(|part| part.trim().parse().ok()).collect();
    let warmup_steps = numbers.first().copied().unwrap_or(0);
    Ok(Schedule { scheduler, learning_rate, warmup_steps, total_steps: numbers.get(1).copied().unwrap_or(steps) })
}

/// `lora_train`: as [`lora_steps`], and the file of the final adapter.
///
/// # Errors
/// As [`lora_grads`].
pub async fn lora_train(
    trainer: &mut Trainer,
    initial: &TrainedWeights,
    request: &Value,
) -> Result<Value, EngineError> {
    let losses = lora_steps(trainer, initial, request).await?;
    let file = write(request, "adapter", &trainer.weights().await?)?;
    Ok(json!({"id": request.get("id"), "losses": losses, "adapter_file": file}))
}

/// Takes the optimizer steps of a `lora_train` request, which cycle through its micro-batches, and returns the loss of
/// each.
///
/// # Errors
/// The request is incomplete, or [`Trainer::accumulate`] fails.
pub async fn lora_steps(
    trainer: &mut Trainer,
    initial: &TrainedWeights,
    request: &Value,
) -> Result<Vec<f64>, EngineError> {
    let listed = request
        .get("micro_batches")
        .and_then(Value::as_array)
        .ok_or_else(|| missing("micro_batches", "a list", request.get("micro_batches")))?;
    let batches = listed.iter().map(batch).collect::<Result<Vec<_>, _>>()?;
    let optimizer = request.get("optimizer").unwrap_or(&Value::Null);
    let (steps, accumulation) = (number(optimizer, "steps")? as u64, number(optimizer, "grad_accumulation")? as usize);
    if batches.is_empty() || accumulation == 0 || accumulation > 1 << 16 || steps > 1 << 24 {
        return Err(EngineError::input(
            "lora_train",
            "micro-batches, and steps and grad_accumulation from 1 on",
            "others",
            REMEDY,
        ));
    }
    let betas = optimizer
        .get("betas")
        .and_then(Value::as_array)
        .and_then(|b| Some((b.first()?.as_f64()?, b.get(1)?.as_f64()?)));
    let betas = betas.ok_or_else(|| missing("optimizer.betas", "two numbers", optimizer.get("betas")))?;
    let schedule = schedule(optimizer, number(optimizer, "lr")?, steps)?;
    let (eps, weight_decay) = (number(optimizer, "eps")?, number(optimizer, "weight_decay")?);
    let max_norm = number(optimizer, "clip_grad_norm").unwrap_or(0.0);
    let token_mean = request.get("loss_normalization").and_then(Value::as_str) != Some("mean_of_means");
    trainer.load_weights(initial)?;
    let (mut losses, mut next) = (Vec::new(), 0);
    for step in 0..steps {
        let chosen: Vec<&MicroBatch> = (0..accumulation).map(|i| &batches[(next + i) % batches.len()]).collect();
        next += accumulation;
        let total: usize = chosen.iter().map(|batch| batch.target_count()).sum();
        let hyper =
            Hyper { learning_rate: schedule.at(step), betas, eps, weight_decay, max_norm, update: 0, loss_scale: 1.0 };
        losses.push(loop {
            let mut loss = 0.0;
            for batch in &chosen {
                let tokens = if token_mean { total } else { batch.target_count() * accumulation };
                loss += trainer.accumulate(batch, 1.0 / tokens.max(1) as f64).await?;
            }
            if trainer.try_update(&hyper).await?.is_some() {
                break loss;
            }
        });
    }
    Ok(losses)
}

/// `dpo`: the mean sigmoid loss over pairs and the gradients; the reference is the base without the adapter.
///
/// # Errors
/// As [`lora_grads`].
pub async fn dpo(trainer: &mut Trainer, initial: &TrainedWeights, request: &Value) -> Result<Value, EngineError> {
    let pairs = request
        .get("pairs")
        .and_then(Value::as_array)
        .ok_or_else(|| missing("pairs", "a list", request.get("pairs")))?;
    let mut batch = MicroBatch::default();
    for pair in pairs {
        for which in ["chosen", "rejected"] {
            let list = |what: &str| integers(pair.get(format!("{which}_{what}")), &format!("{which}_{what}"));
            push(&mut batch, &list("ids")?, &list("labels")?)?;
        }
    }
    trainer.load_weights(initial)?;
    trainer.clear_gradients();
    let reference = trainer.reference_log_probabilities(&batch).await?;
    let outcome =
        trainer.accumulate_pairs(&batch, &reference, number(request, "beta")?, 1.0 / pairs.len().max(1) as f64).await?;
    let file = write(request, "grads", &trainer.gradients().await?)?;
    trainer.clear_gradients();
    let terms: Vec<Value> = outcome
        .pairs
        .iter()
        .map(|p| json!({"policy_chosen": p[0], "policy_rejected": p[1], "margin": p[2], "loss": p[3]}))
        .collect();
    Ok(json!({"id": request.get("id"), "loss": outcome.loss, "terms": terms, "grads_file": file}))
}
