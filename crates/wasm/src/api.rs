//! The JavaScript interface: `EngineModule`, and a few functions for tests and measurements.

use js_sys::{Function, Promise};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

use crate::adapter;
use crate::answer::{Prompt, answer};
use crate::promise::{install_panic_hook, promise};
use crate::session;
use crate::source::ByteSource;
use crate::state;
use crate::suite;
use crate::training;

/// Opens the device. `options`: `{"device": "auto" | "gpu" | "cpu", "powerPreference", "disable": ["f16" | "subgroups" |
/// "dot"], "threads", "maxBindingBytes"}`, all optional; `auto` is the GPU, or the CPU where the browser offers none;
/// `threads` is the most that the CPU uses. Resolves to `DeviceInfo` as JSON; `on_lost(errorJson)` is called at most
/// once, later.
#[wasm_bindgen]
pub fn create(options: String, on_lost: Function) -> Promise {
    install_panic_hook(session::lose);
    promise(async move { session::create(&options, on_lost).await })
}

/// Streams a checkpoint to the device. `options`: `{"format", "contextLength", "cache", "template", "prefillChunk",
/// "autotune"}`, all optional. Resolves to `ModelInfo` as JSON.
#[wasm_bindgen]
pub fn open(source: ByteSource, options: String, on_progress: Function) -> Promise {
    session::begin();
    promise(async move { session::open(source, &options, on_progress).await })
}

/// Answers a conversation (`Message[]` and `Sampling` as JSON). `on_token(text, tokens, more)` is called with each new
/// text; `more` is JSON with `toolCalls` and `logprobs` where there are any. Resolves to `{finishReason, usage}` as
/// JSON.
#[wasm_bindgen]
pub fn chat(messages: String, sampling: String, on_token: Function) -> Promise {
    session::begin();
    promise(async move { answer(Prompt::Chat(messages), &sampling, on_token).await })
}

/// As `chat`, but continues plain text.
#[wasm_bindgen]
pub fn generate(prompt: String, sampling: String, on_token: Function) -> Promise {
    session::begin();
    promise(async move { answer(Prompt::Text(prompt), &sampling, on_token).await })
}

/// As `chat`, but continues token ids, for tests and measurements; the result also has the `ids` of the answer.
#[wasm_bindgen(js_name = generateFromIds)]
pub fn generate_from_ids(ids: Vec<u32>, sampling: String, on_token: Function) -> Promise {
    session::begin();
    promise(async move { answer(Prompt::Ids(ids), &sampling, on_token).await })
}

/// The cache of the last conversation as bytes (`Uint8Array`), for `restoreState` of the same model.
#[wasm_bindgen(js_name = saveState)]
pub fn save_state() -> Promise {
    session::begin();
    promise(state::save())
}

/// Puts the bytes of `saveState` back. Resolves to the number of their tokens: a conversation that begins with them
/// goes on without computing them. States of other models, formats or adapters, and damaged ones, are refused.
#[wasm_bindgen(js_name = restoreState)]
pub fn restore_state(bytes: Vec<u8>) -> Promise {
    session::begin();
    promise(state::restore(bytes))
}

/// Logits after the last of these ids, for tests; the cache is cleared.
#[wasm_bindgen]
pub fn logits(ids: Vec<u32>) -> Promise {
    session::begin();
    promise(async move { session::logits(&ids).await })
}

/// Stops the running `open`, `chat`, `generate`, `train` or `runSuite` after its current step.
#[wasm_bindgen]
pub fn abort() {
    session::abort();
}

/// Token ids of a text, without added special tokens.
///
/// # Errors
/// There is no model, or the tokenizer refuses the text.
#[wasm_bindgen]
pub fn tokenize(text: &str) -> Result<Vec<u32>, JsValue> {
    Ok(session::tokenize(text)?)
}

/// Text of token ids, special tokens included; incomplete characters become U+FFFD.
///
/// # Errors
/// There is no model, or an id is outside its vocabulary.
#[wasm_bindgen]
pub fn detokenize(ids: &[u32]) -> Result<String, JsValue> {
    Ok(session::detokenize(ids)?)
}

/// Attaches a LoRA adapter in PEFT's layout to the open model; several add up. `options`: `{"name", "scale"}`, both
/// optional. Resolves to `AdapterInfo` as JSON. The base is unchanged: after detaching the adapter the model gives the
/// same answers as before.
#[wasm_bindgen(js_name = loadAdapter)]
pub fn load_adapter(source: ByteSource, options: String) -> Promise {
    session::begin();
    promise(async move { adapter::load(source, &options).await })
}

/// Detaches the adapter of that name, or all of them.
///
/// # Errors
/// There is no model, or no adapter of that name.
#[wasm_bindgen(js_name = unloadAdapter)]
pub fn unload_adapter(name: Option<String>) -> Result<(), JsValue> {
    Ok(adapter::unload(name.as_deref())?)
}

/// Reads the headers of a model and the examples of a run, and resolves its recipe; trains nothing. The device should
/// have been created without `f16` (unless the recipe has it) and without `dot`, as the command line does. `options`:
/// `{"format", "recipe"}`, both optional; the recipe has the fields of `bayan finetune`. Resolves to `TrainingPlan` as
/// JSON.
#[wasm_bindgen(js_name = prepareTraining)]
pub fn prepare_training(source: ByteSource, examples: ByteSource, options: String) -> Promise {
    session::begin();
    promise(async move { training::prepare(source, examples, &options).await })
}

/// Loads the base model of the prepared run and measures the time of a micro-batch. Resolves to the estimated seconds
/// of the run. `on_progress(done, total)`: bytes of weights sent to the GPU.
#[wasm_bindgen(js_name = measureTraining)]
pub fn measure_training(on_progress: Function) -> Promise {
    session::begin();
    promise(async move { training::measure(on_progress).await })
}

/// Trains the prepared run, or continues it from the files of a checkpoint. `on_event(json, files)` is called with each
/// `TrainingEvent`; `files` (names to `Uint8Array`) come with `saved`. `abort` saves a checkpoint and ends the run.
/// Resolves to `{"report": JSON of TrainingReport, "files": the adapter's}`.
#[wasm_bindgen]
pub fn train(checkpoint: Option<ByteSource>, on_event: Function) -> Promise {
    session::begin();
    promise(async move { training::run(checkpoint, on_event).await })
}

/// Takes the optimizer steps of a conformance request over this model and initial adapter, for tests. Resolves to
/// `{"losses": JSON of the loss of each step, "files": the adapter's}`.
#[wasm_bindgen(js_name = loraSteps)]
pub fn lora_steps(source: ByteSource, initial: ByteSource, request: String) -> Promise {
    session::begin();
    promise(async move { training::lora_steps(source, initial, &request).await })
}

/// `{"speed", "adapters", "wasmBytes", "gpuBytes"}` as JSON.
#[wasm_bindgen]
pub fn info() -> String {
    session::info()
}

/// Frees the model and the device.
#[wasm_bindgen]
pub fn dispose() {
    session::dispose();
}

/// Destroys the device like a driver reset, to test the reaction.
///
/// # Errors
/// There is no device.
#[wasm_bindgen(js_name = destroyDevice)]
pub fn destroy_device() -> Result<(), JsValue> {
    Ok(session::destroy_device()?)
}

/// Runs the op suite on its own device. `options`: `{"device": {…as for create}, "names": [parts of names]}`.
/// `on_case(name, done, total)` is called before each case. Resolves to `{"device", "total", "passed", "failures":
/// [{"name", "nmse", "bound", "error"}], "seconds"}` as JSON.
#[wasm_bindgen(js_name = runSuite)]
pub fn run_suite(options: String, on_case: Function) -> Promise {
    install_panic_hook(session::lose);
    session::begin();
    promise(async move { suite::run(&options, on_case).await })
}
