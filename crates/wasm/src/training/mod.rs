//! Training in the worker: the run of `bayan-train` on this engine's device, with data and checkpoints from the page.
//!
//! An engine trains, or has a model that answers; the page starts a second worker for training. Rejected: both in one
//! engine, because a failed run would end the chat too, and the model would have to be loaded in f32 arithmetic.

mod events;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use bayan_generate::TextPipeline;
use bayan_gpu::Gpu;
use bayan_models::{ADAPTER_CONFIG, ADAPTER_MODEL, Adapter, LoadOptions};
use bayan_train::checkpoint::{Resumed, decode};
use bayan_train::engine::{Trainer, TrainerOptions, lora_steps as steps, new_adapter};
use bayan_train::run::{INITIAL_WEIGHTS, check_recipe};
use bayan_train::{
    BaseInfo, Calibration, DataFile, MemoryStore, Recipe, RenderOptions, Renderer, Rng, Run, RunData, TrainedWeights,
    estimate,
};
use bayan_weights::{Checkpoint, Policy, Source};
use js_sys::{Function, Object};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wasm_bindgen::JsValue;

use crate::error::{Code, EngineError};
use crate::options::policy;
use crate::session;
use crate::source::{ByteSource, JsSource};
use events::{Events, object, plan_json, report_json};

thread_local! {
    static TRAINING: RefCell<Option<Training>> = const { RefCell::new(None) };
}

/// Options of `prepareTraining`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct TrainingOptions {
    /// As for `open`.
    format: Option<String>,
    /// Fields of a recipe of `bayan finetune`.
    recipe: Map<String, Value>,
}

/// A prepared run.
struct Training {
    recipe: Recipe,
    checkpoint: Checkpoint,
    source: Rc<JsSource>,
    policy: Option<Policy>,
    data: RunData,
    base: BaseInfo,
    gpu: Gpu,
    /// The base on the device, and the adapter before the first step; loaded when first needed.
    loaded: Option<(Trainer, TrainedWeights)>,
}

/// Frees the prepared run.
pub(crate) fn forget() {
    TRAINING.take();
}

/// Recipe fields that have no meaning here, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("data", "pass the examples"),
    ("valid_data", "set val_split, or name a file of the examples valid.jsonl"),
    ("output", "the adapter and the checkpoints are passed to the page"),
    ("quantize", "set format"),
    ("full", "train an adapter; `bayan finetune --full` trains all parameters"),
    ("from_scratch", "train an adapter; `bayan finetune --full --from-scratch` starts from random weights"),
    ("eval", "leave it out: `bayan finetune` scores benchmarks"),
    ("eval_data", "leave it out: `bayan finetune` scores benchmarks"),
    ("eval_limit", "leave it out: `bayan finetune` scores benchmarks"),
    ("keep_best", "leave it out: a browser keeps the newest checkpoint only"),
    ("keep_last", "leave it out: a browser keeps the newest checkpoint only"),
];

fn recipe(fields: Map<String, Value>) -> Result<Recipe, EngineError> {
    if let Some((field, remedy)) = REFUSED.iter().find(|(field, _)| fields.contains_key(*field)) {
        let text = format!("recipe: `{field}`: expected a field that applies in a browser; {remedy}");
        return Err(EngineError::new(Code::BadInput, text));
    }
    Ok(Recipe::resolve([fields])?)
}

pub(crate) async fn prepare(source: ByteSource, examples: ByteSource, options: &str) -> Result<JsValue, EngineError> {
    let options: TrainingOptions =
        serde_json::from_str(options).map_err(|e| EngineError::options("prepareTraining", &e))?;
    let gpu = session::gpu()?;
    session::close();
    let mut recipe = recipe(options.recipe)?;
    if recipe.f16 && !gpu.capabilities().f16 {
        let text = "recipe: `f16`: expected a device with f16 arithmetic, got one without; leave the field out";
        return Err(EngineError::new(Code::BadInput, text));
    }
    let source = JsSource::new(source);
    let checkpoint = Checkpoint::open(source.clone()).await.map_err(|e| source.explain(e))?;
    let policy = policy(options.format.as_deref(), &checkpoint)?;
    // The checkpoint's own view of the files: a GGUF file has its tokenizer and template inside.
    let text = TextPipeline::open(checkpoint.source().as_ref(), recipe.chat_template.as_deref());
    let text = text.await.map_err(|e| source.explain(e))?;
    let positions = bayan_models::sizes(&checkpoint)?.max_position_embeddings;
    recipe.max_seq_length = recipe.max_seq_length.min(positions);
    let renderer = Renderer::new(text.tokenizer, text.template, RenderOptions::of(&recipe));
    let (train, valid) = files(JsSource::new(examples)).await?;
    let data = RunData::read(&recipe, &train, &valid, &renderer, &mut |_| {})?;
    let base = BaseInfo::of(&checkpoint, &recipe, policy.as_ref())?;
    let run = Run { recipe: &recipe, data: &data };
    let largest = data.largest_batch(&recipe, run.epochs());
    let memory =
        estimate(&recipe, &base.memory_inputs(&recipe, &data, (&largest.0, largest.1)), &Calibration::default());
    let plan = plan_json(&run, &base, &memory);
    TRAINING.set(Some(Training { recipe, checkpoint, source, policy, data, base, gpu, loaded: None }));
    Ok(plan.to_string().into())
}

/// Files of training examples, and of evaluation examples: those whose name begins with `valid`, `eval` or `dev`.
async fn files(source: Rc<JsSource>) -> Result<(Vec<DataFile>, Vec<DataFile>), EngineError> {
    let (mut train, mut valid) = (Vec::new(), Vec::new());
    for path in source.list() {
        let size = source.size(&path).await.map_err(|e| source.explain(e))?.unwrap_or(0);
        let bytes = source.read(&path, 0, size as usize).await.map_err(|e| source.explain(e))?;
        let name: Arc<str> = path.rsplit('/').next().unwrap_or(&path).into();
        let evaluates = ["valid", "eval", "dev"].iter().any(|start| name.to_lowercase().starts_with(start));
        let file = DataFile::Memory { name, bytes: bytes.into() };
        if evaluates { valid.push(file) } else { train.push(file) }
    }
    if train.is_empty() {
        let text = "examples: expected a file of training examples, such as train.jsonl, got none; add one";
        return Err(EngineError::new(Code::BadInput, text));
    }
    Ok((train, valid))
}

/// Takes the prepared run out of its cell for a call, and puts it back.
async fn with_training<T>(work: impl AsyncFnOnce(&mut Training) -> Result<T, EngineError>) -> Result<T, EngineError> {
    session::gpu()?.check()?;
    let Some(mut training) = TRAINING.take() else {
        let text = "no run is prepared; call prepareTraining first, and one call at a time";
        return Err(EngineError::new(Code::Internal, text));
    };
    let result = work(&mut training).await;
    // A disposed engine keeps nothing.
    if session::gpu().is_ok() {
        TRAINING.set(Some(training));
    }
    result
}

impl Training {
    /// Loads the base and makes the adapter, if that was not done yet.
    async fn load(&mut self, on_progress: &mut dyn FnMut(u64, u64)) -> Result<(), EngineError> {
        if self.loaded.is_some() {
            return Ok(());
        }
        let (recipe, context) = (&self.recipe, self.data.longest().max(2));
        let load = LoadOptions { context };
        let opened = bayan_models::open(&self.checkpoint, Some(&self.gpu), &load, self.policy.clone(), on_progress);
        let mut decoder = opened.await.map_err(|e| self.source.explain(e))?;
        let mut random = Rng::new(recipe.seed, INITIAL_WEIGHTS);
        let adapter = new_adapter(&mut *decoder, self.base.adapter.clone(), &mut random)?;
        let options = TrainerOptions {
            context,
            recompute: recipe.grad_checkpoint,
            seed: recipe.seed,
            neftune: recipe.neftune_noise_alpha.filter(|alpha| *alpha > 0.0),
            f16: recipe.f16,
            ..TrainerOptions::default()
        };
        let trainer = Trainer::new(Some(&self.gpu), decoder, &adapter, options)?;
        // A browser reports out of memory only afterwards.
        self.gpu.flush().await?;
        self.loaded = Some((trainer, TrainedWeights::Adapter(Box::new(adapter))));
        Ok(())
    }
}

pub(crate) async fn measure(on_progress: Function) -> Result<JsValue, EngineError> {
    with_training(async |training| {
        let mut progress = |done: u64, total: u64| {
            let _ = on_progress.call2(&JsValue::UNDEFINED, &(done as f64).into(), &(total as f64).into());
        };
        training.load(&mut progress).await?;
        let Some((trainer, _)) = &mut training.loaded else { return Ok(JsValue::UNDEFINED) };
        let run = Run { recipe: &training.recipe, data: &training.data };
        Ok(run.measure(trainer).await?.as_secs_f64().into())
    })
    .await
}

pub(crate) async fn run(checkpoint: Option<ByteSource>, on_event: Function) -> Result<JsValue, EngineError> {
    with_training(async |training| {
        let mut events = Events::new(on_event);
        training.load(&mut |done, total| events.loading(done, total)).await?;
        let resumed = match checkpoint {
            Some(files) => Some(resumed(JsSource::new(files), &training.recipe).await?),
            None => None,
        };
        let Some((trainer, initial)) = &mut training.loaded else { return Ok(JsValue::UNDEFINED) };
        if resumed.is_none() {
            trainer.load_weights(initial)?;
        }
        let run = Run { recipe: &training.recipe, data: &training.data };
        let function = events.function();
        let mut saved = |step, files| {
            Events::saved(&function, step, files);
            Ok(())
        };
        let ended = run.start(trainer, resumed, &mut MemoryStore::new(&mut saved), &mut events).await;
        if let Some(error) = events.thrown() {
            return Err(EngineError::thrown(error));
        }
        let ended = ended?;
        let report = report_json(&ended, training.gpu.peak_allocated_bytes());
        Ok(answer("report", &report, &ended.weights)?.into())
    })
    .await
}

async fn resumed(source: Rc<JsSource>, recipe: &Recipe) -> Result<Resumed, EngineError> {
    let resumed = decode(source.clone(), Path::new("checkpoint")).await.map_err(|e| source.explain(e))?;
    check_recipe(&resumed, recipe)?;
    Ok(resumed)
}

/// A JavaScript object with a value as JSON and the files of an adapter.
fn answer(name: &str, value: &Value, weights: &TrainedWeights) -> Result<Object, EngineError> {
    let TrainedWeights::Adapter(adapter) = weights else {
        return Err(EngineError::new(Code::Internal, "an adapter was expected"));
    };
    let files = object([(ADAPTER_CONFIG, adapter.encode_config()), (ADAPTER_MODEL, adapter.encode_weights()?)]);
    let answer = Object::new();
    // Setting a property of a new object cannot fail.
    let _ = js_sys::Reflect::set(&answer, &name.into(), &value.to_string().into());
    let _ = js_sys::Reflect::set(&answer, &"files".into(), &files);
    Ok(answer)
}

pub(crate) async fn lora_steps(source: ByteSource, initial: ByteSource, request: &str) -> Result<JsValue, EngineError> {
    let request: Value = serde_json::from_str(request).map_err(|e| EngineError::options("loraSteps", &e))?;
    let gpu = session::gpu()?;
    let source = JsSource::new(source);
    let checkpoint = Checkpoint::open(source.clone()).await.map_err(|e| source.explain(e))?;
    let context = 256;
    let (load, mut quiet) = (LoadOptions { context }, |_, _| {});
    let opened = bayan_models::open(&checkpoint, Some(&gpu), &load, None, &mut quiet);
    let decoder = opened.await.map_err(|e| source.explain(e))?;
    let files = JsSource::new(initial);
    let adapter = Adapter::open(files.clone()).await.map_err(|e| files.explain(e))?;
    let options = TrainerOptions { context, ..TrainerOptions::default() };
    let mut trainer = Trainer::new(Some(&gpu), decoder, &adapter, options)?;
    let losses = steps(&mut trainer, &TrainedWeights::Adapter(Box::new(adapter)), &request).await?;
    Ok(answer("losses", &json!(losses), &trainer.weights().await?)?.into())
}
