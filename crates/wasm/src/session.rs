//! The device and the model of this engine, and the calls that use them.
//!
//! An asynchronous call takes the model out of its cell and puts it back at the end, so that nothing is borrowed while
//! JavaScript runs and calls `abort` or `info`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use bayan_generate::engine::{Control, DEFAULT_CONTEXT, EngineOptions, cache_shape};
use bayan_generate::{Model, ModelOptions};
use bayan_gpu::{Gpu, GpuError};
use bayan_models::CacheFormat;
use bayan_tensor::Cpu;
use bayan_weights::{Checkpoint, Policy};
use js_sys::Function;
use serde_json::{Value, json};
use wasm_bindgen::JsValue;

use crate::device::{Device, LARGEST_CPU_BYTES, LARGEST_CPU_WEIGHTS_BYTES};
use crate::error::{Code, EngineError};
use crate::options::{CreateOptions, OpenOptions};
use crate::source::{ByteSource, JsSource};
use crate::{adapter, device, helpers, training};

thread_local! {
    static DEVICE: RefCell<Option<Device>> = const { RefCell::new(None) };
    static MODEL: RefCell<Option<Model>> = const { RefCell::new(None) };
    static CHECKPOINT: RefCell<Option<Opened>> = const { RefCell::new(None) };
    static CONTROL: RefCell<Option<Arc<Control>>> = const { RefCell::new(None) };
    static ON_LOST: RefCell<Option<Function>> = const { RefCell::new(None) };
    static SPEED: Cell<Option<(f64, f64)>> = const { Cell::new(None) };
    static ABORTED: Cell<bool> = const { Cell::new(false) };
    static DISPOSED: Cell<bool> = const { Cell::new(false) };
}

/// What the open model was read from.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) source: Rc<JsSource>,
    /// The format of most weights.
    pub(crate) format: String,
    /// [`Checkpoint::fingerprint`], once it was asked for.
    pub(crate) fingerprint: Option<String>,
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
    helpers::stop();
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
    let format = format_name(&checkpoint, policy.as_ref());
    CHECKPOINT.set(Some(Opened { checkpoint, source, format, fingerprint: None }));
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

/// Takes the model out of its cell for a call.
pub(crate) fn take_model() -> Result<Model, EngineError> {
    device()?.check()?;
    let busy = || EngineError::new(Code::Internal, "no model is free; call open first, and one call at a time");
    MODEL.take().ok_or_else(busy)
}

/// Puts the model back, unless the engine was disposed meanwhile.
pub(crate) fn put_back(model: Model) {
    if !DISPOSED.get() {
        MODEL.set(Some(model));
    }
}

pub(crate) async fn logits(ids: &[u32]) -> Result<JsValue, EngineError> {
    let mut model = take_model()?;
    let rows = model.engine.logits(ids, false).await;
    put_back(model);
    Ok(js_sys::Float32Array::from(rows?.concat().as_slice()).into())
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

/// Sets the speed that `info` reports, in tokens per second.
pub(crate) fn set_speed(prefill: f64, decode: f64) {
    SPEED.set(Some((prefill, decode)));
}

/// What the open model was read from.
pub(crate) fn opened() -> Option<Opened> {
    CHECKPOINT.with_borrow(Clone::clone)
}

/// Keeps the fingerprint of the open checkpoint.
pub(crate) fn keep_fingerprint(fingerprint: &str) {
    CHECKPOINT.with_borrow_mut(|opened| {
        opened.iter_mut().for_each(|opened| opened.fingerprint = Some(fingerprint.to_string()));
    });
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
    CHECKPOINT.take();
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
    helpers::stop();
}
