//! What the page hears of a run: `TrainingPlan`, `TrainingEvent` and `TrainingReport` of
//! `web/package/src/training/types.ts`.

use bayan_train::checkpoint::CheckpointFiles;
use bayan_train::{BaseInfo, EndReason, Event, MemoryEstimate, Observer, Run, RunSummary};
use js_sys::{Function, Object, Reflect, Uint8Array};
use serde_json::{Value, json};
use wasm_bindgen::JsValue;

use crate::session;

/// An object with a `Uint8Array` for each file.
pub(super) fn object<'a>(files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Object {
    let object = Object::new();
    for (name, bytes) in files {
        // Setting a property of a new object cannot fail.
        let _ = Reflect::set(&object, &name.into(), &Uint8Array::from(bytes.as_slice()));
    }
    object
}

pub(super) fn plan_json(run: &Run<'_>, base: &BaseInfo, memory: &MemoryEstimate) -> Value {
    let (length, report) = (run.run_length(), &run.data.report);
    json!({
        "examples": run.data.train.dataset().len(),
        "evaluated": run.data.valid.as_ref().map_or(0, |valid| valid.dataset().len()),
        "read": report.read,
        "bad": report.bad,
        "dropped": report.dropped_total(),
        "truncated": report.truncated,
        "trainedTokens": report.trained_tokens,
        "longest": run.data.longest(),
        "steps": length.total_steps,
        "stepsPerEpoch": length.steps_per_epoch,
        "tokens": run.tokens(),
        "trainedParameters": base.trained_parameters(run.recipe),
        "memory": {
            "base": memory.base,
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "cache": memory.cache,
            "activations": memory.activations,
            "working": memory.working,
            "fixed": memory.fixed,
            "total": memory.total(),
        },
    })
}

pub(super) fn report_json(ended: &RunSummary, peak_bytes: u64) -> Value {
    let end = match ended.end {
        EndReason::Done => "done",
        EndReason::EarlyStopped => "earlyStopped",
        EndReason::Interrupted => "paused",
    };
    json!({
        "end": end,
        "steps": ended.steps,
        "tokens": ended.tokens,
        "seconds": ended.elapsed.as_secs_f64(),
        "loss": ended.loss,
        "peakBytes": peak_bytes,
    })
}

/// Passes the events of a run to the page's function.
pub(super) struct Events {
    function: Function,
    thrown: Option<JsValue>,
}

impl Events {
    pub(super) fn new(function: Function) -> Events {
        Events { function, thrown: None }
    }

    pub(super) fn function(&self) -> Function {
        self.function.clone()
    }

    /// What the page's function threw, which ends the run.
    pub(super) fn thrown(&mut self) -> Option<JsValue> {
        self.thrown.take()
    }

    pub(super) fn loading(&mut self, done: u64, total: u64) {
        self.post(&json!({"kind": "loading", "doneBytes": done, "totalBytes": total}));
    }

    /// A checkpoint with its files. An error of the page's function is that of the next event.
    pub(super) fn saved(function: &Function, step: u64, files: CheckpointFiles) {
        let text = json!({"kind": "saved", "steps": step}).to_string();
        let _ = function.call2(&JsValue::UNDEFINED, &text.into(), &object(files));
    }

    fn post(&mut self, event: &Value) {
        if let Err(error) = self.function.call1(&JsValue::UNDEFINED, &event.to_string().into()) {
            self.thrown = Some(error);
        }
    }
}

impl Observer for Events {
    fn event(&mut self, event: Event<'_>) {
        let json = match event {
            Event::Reference { done, total } => json!({"kind": "reference", "done": done, "total": total}),
            Event::Step { entry, total_steps, left, .. } => json!({
                "kind": "step",
                "steps": entry.step + 1,
                "totalSteps": total_steps,
                "epoch": entry.epoch,
                "loss": entry.loss,
                "learningRate": entry.learning_rate,
                "gradNorm": entry.grad_norm,
                "tokensPerSecond": entry.tokens_per_second,
                "secondsLeft": left.as_secs_f64(),
                "memoryBytes": entry.memory_bytes,
            }),
            Event::LargeNorm { step, norm, .. } => json!({"kind": "largeNorm", "steps": step + 1, "gradNorm": norm}),
            Event::Evaluating { done, total } => json!({"kind": "evaluating", "done": done, "total": total}),
            Event::Evaluated { entry, best } => {
                json!({"kind": "evaluated", "steps": entry.step + 1, "loss": entry.eval_loss, "best": best})
            }
            // The store has passed the files already.
            _ => return,
        };
        self.post(&json);
    }

    fn stop(&mut self) -> bool {
        session::is_aborted() || self.thrown.is_some()
    }
}
