//! The device and the model of this engine, and the calls that use them.
//!
//! An asynchronous call takes the model out of its cell and puts it back at the end, so that nothing is borrowed while
//! JavaScript runs and calls `abort` or `info`.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::sync::Arc;

use bayan_generate::engine::{Control, DEFAULT_CONTEXT, EngineOptions, FinishReason, Usage, cache_shape};
use bayan_generate::{Answer, GenerateError, Model, ModelOptions};
use bayan_gpu::{Gpu, GpuError};
use bayan_models::CacheFormat;
use bayan_tensor::Cpu;
use bayan_weights::{Checkpoint, Policy};
use js_sys::Function;
use serde_json::{Value, json};
use wasm_bindgen::JsValue;

use crate::device::{Device, LARGEST_CPU_BYTES, LARGEST_CPU_WEIGHTS_BYTES};
use crate::error::{Code, EngineError};
use crate::options::{CreateOptions, OpenOptions, Sampling};
use crate::source::{ByteSource, JsSource};
use crate::{adapter, device, training};

thread_local! {
    static DEVICE: RefCell<Option<Device>> = const { RefCell::new(None) };
    static MODEL: RefCell<Option<Model>> = const { RefCell::new(None) };
    static CONTROL: RefCell<Option<Arc<Control>>> = const { RefCell::new(None) };
    static ON_LOST: RefCell<Option<Function>> = const { RefCell::new(None) };
    static SPEED: Cell<Option<(f64, f64)>> = const { Cell::new(None) };
    static ABORTED: Cell<bool> = const { Cell::new(false) };
    static DISPOSED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the running call was aborted.
pub(crate) fn is_aborted() -> bool {
    ABORTED.get()
}

/// Starts a call that `abort` can stop.
pub(crate) fn begin() {
    ABORTED.set(false);
}

/// Stops the running call after its current step.
pub(crate) fn abort() {
    ABORTED.set(true);
    CONTROL.with_borrow(|control| control.iter().for_each(|c| c.stop()));
}

/// Notifies the page, once, that the engine cannot continue.
pub(crate) fn lose(error: &EngineError) {
    if let Some(on_lost) = ON_LOST.take() {
        // An error in the page's callback is ignored.
        let _ = on_lost.call1(&JsValue::UNDEFINED, &error.json().into());
    }
}

pub(crate) async fn create(options: &str, on_lost: Function) -> Result<JsValue, EngineError> {
    let options: CreateOptions = serde_json::from_str(options).map_err(|e| EngineError::options("create", &e))?;
    let (device, info) = device::open(&options).await?;
    ON_LOST.set(Some(on_lost));
    if let Device::Gpu(gpu) = &device {
        gpu.set_on_lost(Some(Box::new(|error: GpuError| lose(&error.into()))));
    }
    DEVICE.set(Some(device));
    DISPOSED.set(false);
    Ok(info.to_string().into())
}

/// The open device.
fn device() -> Result<Device, EngineError> {
    DEVICE
        .with_borrow(Clone::clone)
        .ok_or_else(|| EngineError::new(Code::Internal, "no device is open; call create first"))
}

/// The open device, where only a GPU does.
pub(crate) fn gpu() -> Result<Gpu, EngineError> {
    match device()? {
        Device::Gpu(gpu) => Ok(gpu),
        Device::Cpu(_) => Err(EngineError::new(
            Code::NoWebGpu,
            "expected a GPU, got the CPU, which does not do this; use a browser with WebGPU",
        )),
    }
}

pub(crate) async fn open(source: ByteSource, options: &str, on_progress: Function) -> Result<JsValue, EngineError> {
    let options: OpenOptions = serde_json::from_str(options).map_err(|e| EngineError::options("open", &e))?;
    let device = device()?;
    let cache = options.cache()?;
    // Free the memory of an open model first.
    close();
    let source = JsSource::new(source);
    let before_bytes = if let Device::Gpu(gpu) = &device { gpu.allocated_bytes() } else { 0 };
    let checkpoint = Checkpoint::open(source.clone()).await.map_err(|e| source.explain(e))?;
    let policy = options.policy(&checkpoint)?;
    let limit = bayan_models::sizes(&checkpoint)?.max_position_embeddings;
    let context = options.context_length.map(|wanted| wanted.clamp(2, limit.max(2)));
    let engine = EngineOptions {
        context,
        cache,
        policy: policy.clone(),
        prefill_chunk: options.prefill_chunk,
        ..EngineOptions::default()
    };
    let model_options = ModelOptions { engine, chat_template: options.template.clone() };
    let mut progress = |done: u64, total: u64| {
        let _ = on_progress.call2(&JsValue::UNDEFINED, &(done as f64).into(), &(total as f64).into());
    };
    let opened = match &device {
        Device::Gpu(gpu) => Model::open(&checkpoint, gpu, &model_options, &mut progress).await,
        Device::Cpu(cpu) => {
            check_cpu_memory(&checkpoint, cpu, &model_options.engine)?;
            Model::open_on_cpu(&checkpoint, cpu, &model_options, &mut progress).await
        }
    };
    let mut model = opened.map_err(|e| source.explain(e))?;
    model.engine.set_pause(Device::pause());
    if is_aborted() {
        return Err(EngineError::aborted());
    }
    // A browser reports out of memory only afterwards.
    device.flush().await?;
    let tuned = match options.autotune {
        true => model.engine.autotune(&js_sys::Date::now).await?,
        false => Vec::new(),
    };
    let held_bytes = model.engine.allocated_bytes().saturating_sub(before_bytes);
    let mut info = model_info(&checkpoint, &model, policy.as_ref(), cache, held_bytes);
    if !tuned.is_empty() {
        info["tuned"] =
            tuned.iter().map(|m| json!({"shape": format!("{:?}", m.shape), "milliseconds": m.elapsed_ms})).collect();
    }
    CONTROL.set(Some(model.engine.control()));
    MODEL.set(Some(model));
    Ok(info.to_string().into())
}

/// Refuses a model that is too large for the CPU, before anything of it is read.
fn check_cpu_memory(checkpoint: &Checkpoint, cpu: &Cpu, options: &EngineOptions) -> Result<(), EngineError> {
    let bytes = |tensor: &bayan_weights::TensorEntry| -> u64 {
        let format = tensor.loaded_format(options.policy.as_ref());
        let rows = tensor.rows() as u64;
        let planes = 0..format.planes().len();
        planes.map(|plane| format.row_bytes(plane, tensor.k().next_multiple_of(32)).saturating_mul(rows)).sum()
    };
    let weights = checkpoint.tensors().iter().map(bytes).fold(0, u64::saturating_add);
    let too_large = |code, needed: u64, limit: u64, text: String| {
        let details = json!({"device": "cpu", "neededBytes": needed, "availableBytes": limit});
        Err(EngineError::new(code, text).with(details))
    };
    if weights > LARGEST_CPU_WEIGHTS_BYTES {
        let text = format!(
            "a model of {weights} bytes of weights: expected at most {LARGEST_CPU_WEIGHTS_BYTES} on the CPU; choose 4 bits, a smaller model, or a browser with WebGPU"
        );
        return too_large(Code::UnsupportedDevice, weights, LARGEST_CPU_WEIGHTS_BYTES, text);
    }
    let context = options.context.unwrap_or(DEFAULT_CONTEXT);
    let shape = cache_shape(context, options.cache, cpu.capabilities());
    let layers = bayan_models::cache_specs(checkpoint)?;
    let cache = layers.iter().map(|layer| layer.size_bytes(shape)).fold(0, u64::saturating_add);
    let total = weights.saturating_add(cache);
    if total > LARGEST_CPU_BYTES {
        let text = format!(
            "weights of {weights} bytes and a cache of {cache} bytes for {context} tokens: expected at most {LARGEST_CPU_BYTES} bytes together in WebAssembly; choose a shorter context"
        );
        return too_large(Code::OutOfMemory, total, LARGEST_CPU_BYTES, text);
    }
    Ok(())
}

fn model_info(
    checkpoint: &Checkpoint,
    model: &Model,
    policy: Option<&Policy>,
    cache: CacheFormat,
    held_bytes: u64,
) -> Value {
    let config = checkpoint.config();
    let text = |name: &str| config.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
    let architecture = text("model_type").unwrap_or("unknown");
    let name = text("_name_or_path").and_then(|path| path.rsplit('/').next()).unwrap_or(architecture);
    json!({
        "name": name,
        "architecture": architecture,
        "parameters": checkpoint.tensors().iter().map(|t| t.count()).sum::<u64>(),
        "contextLength": model.engine.context(),
        "format": format_name(checkpoint, policy),
        "cacheFormat": cache.name(),
        "weightBytes": held_bytes.saturating_sub(model.engine.cache_bytes()),
        "cacheBytes": model.engine.cache_bytes(),
        "vocabulary": model.engine.decoder().sizes().vocab_size,
        "hasChatTemplate": model.template.is_some(),
    })
}

/// The format of most weights on the device.
fn format_name(checkpoint: &Checkpoint, policy: Option<&Policy>) -> String {
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    for tensor in checkpoint.tensors() {
        let name = tensor.loaded_format(policy).name();
        *counts.entry(name.to_string()).or_default() += tensor.count();
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name).unwrap_or_default()
}

/// The input of a generation.
pub(crate) enum Prompt {
    /// `Message[]` as JSON.
    Chat(String),
    /// Text without a template.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

pub(crate) async fn answer(prompt: Prompt, sampling: &str, on_token: Function) -> Result<JsValue, EngineError> {
    let sampling: Sampling = serde_json::from_str(sampling).map_err(|e| EngineError::options("sampling", &e))?;
    device()?.check()?;
    let Some(mut model) = MODEL.take() else {
        return Err(EngineError::new(Code::Internal, "no model is free; call open first, and one call at a time"));
    };
    let with_ids = matches!(prompt, Prompt::Ids(_));
    let result = run(&mut model, prompt, sampling, &on_token).await;
    let (used, length) = (model.engine.cached_tokens(), model.engine.context());
    if !DISPOSED.get() {
        MODEL.set(Some(model));
    }
    let answer = result?;
    if answer.usage.finish == FinishReason::GrammarFault {
        return Err(EngineError::new(Code::Internal, "the grammar of responseFormat failed; simplify the schema"));
    }
    if answer.usage.finish == FinishReason::Stopped || is_aborted() {
        return Err(EngineError::aborted());
    }
    let mut report = report(&answer.usage, used, length);
    if with_ids {
        report["ids"] = json!(answer.ids);
    }
    Ok(report.to_string().into())
}

pub(crate) async fn logits(ids: &[u32]) -> Result<JsValue, EngineError> {
    device()?.check()?;
    let Some(mut model) = MODEL.take() else {
        return Err(EngineError::new(Code::Internal, "no model is free; call open first, and one call at a time"));
    };
    let rows = model.engine.logits(ids, false).await;
    MODEL.set(Some(model));
    Ok(js_sys::Float32Array::from(rows?.concat().as_slice()).into())
}

async fn run(
    model: &mut Model,
    prompt: Prompt,
    sampling: Sampling,
    on_token: &Function,
) -> Result<Answer, EngineError> {
    if is_aborted() {
        return Err(EngineError::aborted());
    }
    let generation = sampling.generation(&model.defaults, &model.tokenizer)?;
    let ids = match prompt {
        Prompt::Chat(messages) => {
            let messages: Vec<Value> =
                serde_json::from_str(&messages).map_err(|e| EngineError::options("messages", &e))?;
            model.chat_prompt(&messages)?
        }
        Prompt::Text(text) => model.tokenizer.encode_prompt(&text)?,
        Prompt::Ids(ids) => ids,
    };
    let control = model.engine.control();
    let mut thrown = None;
    let mut on_text =
        |text: &str| match on_token.call2(&JsValue::UNDEFINED, &text.into(), &(control.tokens() as f64).into()) {
            Ok(_) if is_aborted() => ControlFlow::Break(()),
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => {
                thrown = Some(error);
                ControlFlow::Break(())
            }
        };
    let answer = model.generate(&ids, &generation, &mut on_text).await;
    match thrown {
        Some(error) => Err(EngineError::thrown(error)),
        None => answer.map_err(|e: GenerateError| e.into()),
    }
}

fn report(usage: &Usage, used: usize, length: usize) -> Value {
    let finish = match usage.finish {
        FinishReason::Length => "length",
        FinishReason::ContextFull => "context",
        FinishReason::Stop | FinishReason::Stopped | FinishReason::GrammarFault => "stop",
    };
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    let prefill = rate(usage.prompt_tokens.saturating_sub(usage.cached_tokens), usage.prefill_seconds);
    SPEED.set(Some((prefill, rate(usage.generated_tokens.saturating_sub(1), usage.decode_seconds))));
    json!({
        "finishReason": finish,
        "usage": {
            "promptTokens": usage.prompt_tokens,
            "cachedTokens": usage.cached_tokens,
            "completionTokens": usage.generated_tokens,
            "contextUsed": used,
            "contextLength": length,
            "prefillMs": usage.prefill_seconds * 1e3,
            "decodeMs": usage.decode_seconds * 1e3,
        },
    })
}

pub(crate) fn tokenize(text: &str) -> Result<Vec<u32>, EngineError> {
    with_model(|model| Ok(model.tokenizer.encode(text, false)?))
}

pub(crate) fn detokenize(ids: &[u32]) -> Result<String, EngineError> {
    with_model(|model| Ok(model.tokenizer.decode(ids, false)?))
}

pub(crate) fn info() -> String {
    let speed = SPEED
        .get()
        .map(|(prefill, decode)| json!({"prefillTokensPerSecond": prefill, "decodeTokensPerSecond": decode}));
    let gpu_bytes = gpu().ok().map(|gpu| gpu.allocated_bytes());
    // One page of WebAssembly memory is 64 KiB.
    let wasm_bytes = core::arch::wasm32::memory_size(0) as u64 * 65536;
    json!({"speed": speed, "adapters": adapter::attached(), "wasmBytes": wasm_bytes, "gpuBytes": gpu_bytes}).to_string()
}

/// Calls `work` with the open model, while no other call runs.
pub(crate) fn with_model<T>(work: impl FnOnce(&mut Model) -> Result<T, EngineError>) -> Result<T, EngineError> {
    device()?.check()?;
    MODEL.with_borrow_mut(|model| match model {
        Some(model) => work(model),
        None => Err(EngineError::new(Code::Internal, "no model is free; call open first, and one call at a time")),
    })
}

/// Waits for the device, and returns an error that it reported.
pub(crate) async fn settle() -> Result<(), EngineError> {
    device()?.flush().await
}

pub(crate) fn close() {
    adapter::forget();
    training::forget();
    CONTROL.take();
    MODEL.take();
    SPEED.take();
}

/// Destroys the device like a driver reset.
pub(crate) fn destroy_device() -> Result<(), EngineError> {
    gpu()?.destroy();
    Ok(())
}

pub(crate) fn dispose() {
    DISPOSED.set(true);
    abort();
    ON_LOST.take();
    close();
    if let Some(Device::Gpu(gpu)) = DEVICE.take() {
        gpu.set_on_lost(None);
        gpu.destroy();
    }
}
