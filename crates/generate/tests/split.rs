//! Layers on several devices: two independent handles of this machine's device give the same results as one, bit for
//! bit.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::rc::Rc;

use bayan_generate::{Engine, EngineOptions, GenerateError, Request, SampleSettings, TokenScore};
use bayan_gpu::{Gpu, GpuOptions, block_on};
use bayan_models::{Adapter, CacheFormat};
use bayan_weights::{Checkpoint, DirectorySource, Policy, format_by_name};

fn fixture(part: &str) -> Rc<DirectorySource> {
    Rc::new(
        DirectorySource::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(part))
            .unwrap(),
    )
}

fn gpus(count: usize) -> Vec<Gpu> {
    (0..count).map(|_| block_on(Gpu::open(&GpuOptions::default())).expect("a device")).collect()
}

fn open(name: &str, gpus: &[Gpu], shares: &[f64], options: &EngineOptions) -> Result<Engine, GenerateError> {
    let checkpoint = block_on(Checkpoint::open(fixture(&format!("models/{name}")))).unwrap();
    block_on(Engine::open_on_devices(&checkpoint, gpus, shares, options, &mut |_, _| {}))
}

fn options(format: &str, cache: CacheFormat) -> EngineOptions {
    let policy = Some(Policy::for_format(format_by_name(format).unwrap()));
    EngineOptions { policy, cache, sequences: 2, context: Some(96), prefill_chunk: Some(16), ..Default::default() }
}

fn ids(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + 13) % vocabulary) as u32).collect()
}

/// Logits of a prompt, and continuations of three prompts, two at a time, greedy and sampled, with the cache that
/// results.
fn answers(engine: &mut Engine) -> (Vec<Vec<f32>>, Vec<Vec<u32>>) {
    let vocabulary = engine.decoder().sizes().vocab_size;
    let logits = block_on(engine.logits(&ids(37, vocabulary), true)).unwrap();
    engine.reset();
    let prompts = [ids(40, vocabulary), ids(9, vocabulary), ids(21, vocabulary)];
    let by_chance = SampleSettings { temperature: 0.9, top_k: 50, repeat_penalty: 1.2, seed: 3, ..Default::default() };
    let requests: Vec<Request<'_>> = [&SampleSettings::default(), &by_chance, &SampleSettings::default()]
        .into_iter()
        .zip(&prompts)
        .map(|(settings, prompt)| Request {
            prompt,
            settings: *settings,
            bias: &[],
            stop: &[],
            max_tokens: 8,
            grammar: None,
            scores: None,
        })
        .collect();
    let mut tokens = vec![Vec::new(); requests.len() + 1];
    let mut collect = |index: usize, token: u32, _: Option<&TokenScore>| {
        tokens[index].push(token);
        ControlFlow::Continue(())
    };
    block_on(engine.generate_many(&requests, &mut collect)).unwrap();
    // A prefix that is in the cache already.
    let longer = [&prompts[0][..], &[3, 4, 5]].concat();
    let usage = block_on(
        engine.generate(&longer, &SampleSettings::default(), &[], &[], 4, &mut |token| collect(3, token, None)),
    )
    .unwrap();
    assert_eq!(usage.generated_tokens, 4);
    (logits, tokens)
}

#[test]
fn two_devices_give_what_one_gives() {
    let gpus = gpus(2);
    let cases = [
        ("llama3_gqa", "q4_k", CacheFormat::F16),
        // The head is the embedding: the last part is again on the first device.
        ("qwen3_qknorm", "f32", CacheFormat::F32),
        // Ring buffers, and two rotary tables.
        ("gemma3_text", "q8_0", CacheFormat::F32),
        // Attention and MLP read the same norm.
        ("cohere", "q4_0", CacheFormat::F16),
        // Two states per layer besides keys and values.
        ("falcon_h1", "f32", CacheFormat::F16),
        ("jais", "f16", CacheFormat::F32),
    ];
    for (name, format, cache) in cases {
        let options = options(format, cache);
        let mut one = open(name, &gpus[..1], &[1.0], &options).unwrap();
        assert_eq!(one.transfer_bytes().unwrap(), 0);
        let expected = answers(&mut one);
        drop(one);
        let before: Vec<u64> = gpus.iter().map(Gpu::allocated_bytes).collect();
        let mut split = open(name, &gpus, &[1.0, 1.0], &options).unwrap();
        assert!(
            gpus.iter().zip(&before).all(|(gpu, before)| gpu.allocated_bytes() > *before),
            "{name}: both hold something"
        );
        let (layers, sizes) = (split.layer_devices().to_vec(), split.decoder().sizes().clone());
        assert!(layers.is_sorted() && layers.contains(&0) && layers.contains(&1), "{name}: {layers:?}");
        let times = if sizes.tie_word_embeddings { 2 } else { 1 };
        assert_eq!(
            split.transfer_bytes().unwrap(),
            times * 4 * sizes.hidden_size as u64,
            "{name}: one residual for each change of the device"
        );
        assert!(answers(&mut split) == expected, "{name}: not the same as on one device");
    }
}

#[test]
fn shares_move_layers_and_impossible_ones_are_refused() {
    let gpus = gpus(3);
    let options = options("f32", CacheFormat::F32);
    let layers = |shares: &[f64]| {
        open("gemma3_text", &gpus[..shares.len()], shares, &options).map(|engine| engine.layer_devices().to_vec())
    };
    assert_eq!(layers(&[1e-6, 1.0]).unwrap(), [0, 1, 1, 1], "every device has a layer");
    assert_eq!(layers(&[1.0, 1e-6]).unwrap(), [0, 0, 0, 1]);
    assert_eq!(layers(&[1.0, 1e-9, 1.0]).unwrap().iter().filter(|&&device| device == 1).count(), 1);
    for shares in [[1.0, 0.0], [1.0, -1.0], [f64::NAN, 1.0]] {
        let error = layers(&shares).unwrap_err().to_string();
        assert!(error.contains("shares above 0"), "{error}");
    }
    let error = open("qwen3_qknorm", &gpus, &[1.0; 3], &options).map(drop).unwrap_err().to_string();
    assert!(error.contains("2 layers") && error.contains("3 devices"), "{error}");
    assert!(open("gemma3_text", &gpus, &[1.0], &options).is_err());
}

#[test]
fn adapters_streamed_layers_and_measuring_work_on_split_models() {
    let gpus = gpus(2);
    let adapter = block_on(Adapter::open(fixture("lora/llama3_r8_all/adapter_final"))).unwrap();
    let mut options = options("q8_0", CacheFormat::F16);
    let run = |engine: &mut Engine| {
        let plain = answers(engine);
        engine.attach("one", &adapter, 1.0).unwrap();
        let adapted = answers(engine);
        assert!(adapted != plain);
        assert!(engine.detach("one"));
        assert!(answers(engine) == plain, "as before");
        let text = ids(60, engine.decoder().sizes().vocab_size);
        let windows: Vec<&[u32]> = text.chunks(40).collect();
        (adapted, block_on(engine.importance(&windows, &mut |_| {})).unwrap())
    };
    let expected = run(&mut open("llama3_gqa", &gpus[..1], &[1.0], &options).unwrap());
    let mut split = open("llama3_gqa", &gpus, &[1.0, 1.0], &options).unwrap();
    assert!(run(&mut split) == expected);
    options.gpu_layers = Some(1);
    let mut streamed = open("llama3_gqa", &gpus, &[1.0, 1.0], &options).unwrap();
    assert!(streamed.streamed_bytes() > 0);
    assert!(run(&mut streamed) == expected);
}
