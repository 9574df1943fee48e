//! The output of a run: lines for people, or one JSON object per line.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use bayan_generate::text::Tokenizer;
use bayan_gpu::Gpu;
use bayan_train::engine::GradientCheck;
use bayan_train::{
    BaseInfo, DataReport, Event, LogEntry, MemoryEstimate, Observer, Recipe, RunData, RunLength, Tokens, dry_run,
};
use serde_json::{Value, json};

use crate::support::output::{self, Progress};

/// Prints the events of a run, and stops it after Ctrl-C.
pub struct RunPrinter {
    json: bool,
    stop: Arc<AtomicBool>,
    progress: Option<Progress>,
}

impl RunPrinter {
    /// Makes an observer that prints text lines, or JSON.
    pub fn new(json: bool) -> RunPrinter {
        RunPrinter { json, stop: Arc::default(), progress: None }
    }

    /// Stops the run after the current step once the flag is set.
    pub fn stop_on(&mut self, flag: Arc<AtomicBool>) {
        self.stop = flag;
    }

    /// Prints the text or the JSON.
    pub fn line(&self, text: &str, value: &Value) -> Result<()> {
        if self.json { output::line(&value.to_string()) } else { output::line(text) }
    }

    /// Prints the counts of the rows.
    pub fn data(&self, data: &RunData) -> Result<()> {
        let shape = data.shape.map_or("?".to_owned(), |shape| format!("{shape:?}"));
        let mut text = format!("data ({shape})\n{}", data.report);
        if let Some(report) = &data.valid_report {
            text.push_str(&format!("evaluation data\n{report}"));
        }
        let held = data.valid.as_ref().map_or(0, |units| units.dataset().len());
        let value = json!({"event": "data", "shape": shape, "train": report_json(&data.report), "valid": data.valid_report.as_ref().map(report_json),
            "training_units": data.train.len(), "evaluation_examples": held});
        self.line(text.trim_end(), &value)
    }

    /// Prints the length of the run and what it trains.
    pub fn run(&self, recipe: &Recipe, base: &BaseInfo, length: &RunLength, data: &RunData) -> Result<()> {
        let trained = base.trained_parameters(recipe);
        let units = if recipe.packing { "packs" } else { "examples" };
        let what = if recipe.full {
            "all parameters".to_owned()
        } else {
            let modules = base.adapter.target_modules.to_json();
            let names =
                modules.as_array().map(|list| list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "));
            format!("LoRA of rank {} on {}", recipe.rank, names.unwrap_or_else(|| modules.to_string()))
        };
        let held = data.valid.as_ref().map_or(0, |units| units.dataset().len());
        let text = format!(
            "run\n{what}: {} of {} parameters are trained ({:.2} %)\n{} {units} in micro-batches of {}, {} per step: {} steps per epoch, {} steps in all; {held} evaluation examples",
            output::count(trained),
            output::count(base.parameters),
            100.0 * trained as f64 / base.parameters.max(1) as f64,
            data.train.len(),
            recipe.batch_size,
            recipe.gradient_accumulation_steps,
            length.steps_per_epoch,
            length.total_steps
        );
        self.line(
            &text,
            &json!({"event": "run", "trained_parameters": trained, "parameters": base.parameters, "steps_per_epoch": length.steps_per_epoch,
                "total_steps": length.total_steps, "recipe": recipe}),
        )
    }

    /// Prints the memory estimate.
    pub fn memory(&self, memory: &MemoryEstimate) -> Result<()> {
        let value = json!({"event": "memory", "base": memory.base, "weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer,
            "cache": memory.cache, "activations": memory.activations, "working": memory.working, "fixed": memory.fixed, "total": memory.total()});
        self.line(format!("estimated device memory\n{memory}").trim_end(), &value)
    }

    /// Prints the device.
    pub fn device(&self, gpu: &Gpu) -> Result<()> {
        let c = gpu.capabilities();
        self.line(
            &format!("device: {}, {}", c.name, c.path()),
            &json!({"event": "device", "name": c.name, "driver": c.driver, "path": c.path()}),
        )
    }

    /// Prints a check of the gradients.
    pub fn gradients(&self, checks: &[GradientCheck]) -> Result<()> {
        let mut text = format!("{:<26} {:>9} {:>14} {:>14}  verdict\n", "gradients", "loss", "norm", "slope of loss");
        for (check, place) in checks.iter().zip(["at the initial weights", "a small step further"]) {
            let verdict = if check.agrees() { "agree" } else { "DIFFER" };
            let GradientCheck { loss, norm, slope, .. } = check;
            text += &format!("{place:<26} {loss:>9.4} {norm:>14.6} {slope:>14.6}  {verdict}\n");
        }
        let values: Vec<Value> = checks
            .iter()
            .map(|c| json!({"loss": c.loss, "norm": c.norm, "slope": c.slope, "distance": c.distance, "agrees": c.agrees()}))
            .collect();
        self.line(text.trim_end(), &json!({"event": "gradients", "checks": values}))
    }

    /// Prints rendered examples with the trained tokens marked.
    pub fn examples(&self, examples: &[Tokens], tokenizer: &Tokenizer) -> Result<()> {
        let colour =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        for (number, tokens) in examples.iter().enumerate() {
            let text = dry_run(tokens, tokenizer, colour && !self.json)?;
            let value = json!({"event": "example", "number": number, "text": text, "ids": tokens.ids, "labels": tokens.labels()});
            self.line(&format!("example {}\n{}", number + 1, text.trim_end()), &value)?;
        }
        Ok(())
    }

    fn show(&mut self, text: &str, value: &Value) {
        self.progress = None;
        // A closed output does not end a run; its checkpoints and logs are on disk.
        let _ = self.line(text, value);
    }

    fn bar(&mut self, what: &str, done: usize, total: usize) {
        self.progress.get_or_insert_with(|| Progress::new(what, false)).set(done as u64, total as u64);
    }
}

impl Observer for RunPrinter {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Reference { done, total } => self.bar("reference", done, total),
            Event::Evaluating { done, total } => self.bar("evaluating", done, total),
            Event::Step { entry, logged: true, total_steps, left } => {
                let mut value = entry_json("step", entry);
                value["total_steps"] = json!(total_steps);
                value["seconds_left"] = json!(left.as_secs_f64());
                self.show(&step_line(entry, total_steps, left), &value);
            }
            Event::LargeNorm { step, norm, median } => {
                let usual = median.map(|median| format!(", and the median so far is {median:.3}")).unwrap_or_default();
                self.show(
                    &format!(
                        "warning: the gradient norm of step {} is {norm:.4e}{usual}; `--check-gradients` compares the \
                         gradients of this device with the slope of the loss",
                        step + 1
                    ),
                    &json!({"event": "large_norm", "step": step, "grad_norm": norm, "median": median}),
                );
            }
            Event::Evaluated { entry, best } => {
                let mut value = entry_json("evaluation", entry);
                value["best"] = json!(best);
                let accuracy =
                    entry.reward_accuracy.map(|a| format!("  accuracy {:.0} %", 100.0 * a)).unwrap_or_default();
                let note = if best { "  (best so far)" } else { "" };
                self.show(
                    &format!(
                        "evaluation after step {}: loss {:.4}{accuracy}{note}",
                        entry.step + 1,
                        entry.eval_loss.unwrap_or(f64::NAN)
                    ),
                    &value,
                );
            }
            Event::Benchmarked { entry } => {
                let scores: Vec<String> =
                    entry.scores.iter().map(|(name, score)| format!("{name} {:.2} %", 100.0 * score)).collect();
                let text = format!("benchmarks after step {}: {}", entry.step + 1, scores.join(", "));
                self.show(&text, &entry_json("benchmarks", entry));
            }
            Event::Saved { place, step } => {
                self.show(&format!("saved {place}"), &json!({"event": "saved", "path": place, "steps": step}));
            }
            _ => {}
        }
    }

    fn stop(&mut self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn entry_json(event: &str, entry: &LogEntry) -> Value {
    let mut value = json!({ "event": event });
    for (name, number) in serde_json::to_value(entry).unwrap_or_default().as_object().into_iter().flatten() {
        value[name] = number.clone();
    }
    value
}

fn step_line(entry: &LogEntry, total_steps: u64, left: Duration) -> String {
    let number = |value: Option<f64>| value.unwrap_or(f64::NAN);
    let rewards = match (entry.reward_accuracy, entry.reward_margin) {
        (Some(accuracy), Some(margin)) => format!("  accuracy {:.0} %  margin {margin:.3}", 100.0 * accuracy),
        _ => String::new(),
    };
    let scale = entry.loss_scale.map(|scale| match entry.skipped_updates {
        Some(skipped @ 1..) => format!("  scale {scale} ({skipped} skipped)"),
        _ => format!("  scale {scale}"),
    });
    format!(
        "step {:>4}/{total_steps}  loss {:.4}{rewards}  lr {:.2e}  norm {:.3}{}  {:.2} s  {:.0} tokens/s  {}  {} left",
        entry.step + 1,
        number(entry.loss),
        number(entry.learning_rate),
        number(entry.grad_norm),
        scale.unwrap_or_default(),
        number(entry.step_seconds),
        number(entry.tokens_per_second),
        output::size(entry.memory_bytes.unwrap_or(0)),
        time(left)
    )
}

/// Formats a duration for people.
pub fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

fn report_json(report: &DataReport) -> Value {
    json!({"read": report.read, "kept": report.kept, "truncated": report.truncated, "bad": report.bad, "dropped": report.dropped,
        "untrained_turns": report.untrained_turns, "tokens": report.tokens, "trained_tokens": report.trained_tokens, "longest": report.longest,
        "lengths": report.lengths.iter().enumerate().filter(|(_, n)| **n > 0).map(|(b, n)| json!([1u64 << b, n])).collect::<Vec<_>>()})
}
