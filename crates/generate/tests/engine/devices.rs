//! Devices: layers in host memory, shards, tuning, a lost device.

use bayan_generate::{Engine, EngineOptions};
use bayan_gpu::{GpuOptions, block_on};
use bayan_models::CacheFormat;
use bayan_tensor::nmse;

use crate::*;

#[test]
fn streamed_layers_change_nothing_but_the_memory() {
    let gpu = gpu(GpuOptions::default());
    for (name, format) in [("llama3_gqa", "q4_k"), ("qwen3_qknorm", "f16")] {
        let open = |gpu_layers| {
            let before = gpu.allocated_bytes();
            let options = EngineOptions { gpu_layers, policy: policy(format), context: Some(64), ..exact() };
            let engine = engine(name, &gpu, options);
            let held = gpu.allocated_bytes() - before;
            (engine, held)
        };
        let prompt = ids(40, 500);
        let (mut whole, whole_bytes) = open(None);
        let expected = (greedy(&mut whole, &prompt, 12), block_on(whole.logits(&prompt, true)).unwrap());
        assert_eq!(whole.streamed_bytes(), 0);
        drop(whole);
        let layers = checkpoint(name).config()["num_hidden_layers"].as_u64().unwrap() as usize;
        for kept in 0..layers {
            let (mut partly, _) = open(Some(kept));
            assert!(partly.streamed_bytes() > 0);
            assert_eq!(
                (greedy(&mut partly, &prompt, 12), block_on(partly.logits(&prompt, true)).unwrap()),
                expected,
                "{name}, {kept} layers kept"
            );
        }
        // With as many layers as the model has, nothing is streamed.
        let (all, all_bytes) = open(Some(layers));
        assert_eq!((all.streamed_bytes(), all_bytes), (0, whole_bytes));
    }
}

#[test]
fn shards_change_nothing() {
    // 78 KiB are less than the vocabulary matrices of these models in q8_0, and enough for every other tensor.
    let (whole, sharded) =
        (gpu(GpuOptions::default()), gpu(GpuOptions { max_binding_bytes: Some(78 << 10), ..Default::default() }));
    for name in ["llama2_mha", "qwen2_bias", "llama3_tied"] {
        let options = || EngineOptions { policy: policy("q8_0"), context: Some(64), ..Default::default() };
        let (mut a, mut b) = (engine(name, &whole, options()), engine(name, &sharded, options()));
        let prompt = ids(12, a.decoder().sizes().vocab_size);
        assert!(b.decoder().matrices().iter().any(|matrix| matrix.shards().len() > 1), "{name}: nothing was sharded");
        let (a_logits, b_logits) =
            (block_on(a.logits(&prompt, true)).unwrap(), block_on(b.logits(&prompt, true)).unwrap());
        assert!(nmse(&a_logits.concat(), &b_logits.concat()) < 1e-12, "{name}");
        assert_eq!(greedy(&mut a, &prompt, 8), greedy(&mut b, &prompt, 8), "{name}");
    }
}

#[test]
fn a_cache_larger_than_a_binding_is_refused_at_the_start() {
    let gpu = gpu(GpuOptions { max_binding_bytes: Some(78 << 10), ..Default::default() });
    let options =
        EngineOptions { policy: policy("q8_0"), cache: CacheFormat::F32, context: Some(512), ..Default::default() };
    let opened = block_on(Engine::open(&checkpoint("llama2_mha"), &gpu, &options, &mut |_, _| {}));
    let error = opened.err().expect("an error").to_string();
    assert!(error.contains("the keys of one layer") && error.contains("--context"), "{error}");
}

#[test]
fn tuning_measures_and_changes_no_token() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("qwen3_qknorm", &gpu, EngineOptions { policy: policy("q4_0"), ..Default::default() });
    let prompt = ids(20, engine.decoder().sizes().vocab_size);
    let before = greedy(&mut engine, &prompt, 8);
    let start = std::time::Instant::now();
    let measured = block_on(engine.autotune(&|| start.elapsed().as_secs_f64() * 1e3)).unwrap();
    assert!(measured.len() > 3, "all shapes agree with the default: {measured:?}");
    assert!(measured.windows(2).all(|pair| pair[0].elapsed_ms <= pair[1].elapsed_ms));
    assert_eq!(engine.tuning().rows, Some(measured[0].shape));
    engine.reset();
    assert_eq!(greedy(&mut engine, &prompt, 8), before);
}

#[test]
fn a_lost_device_is_an_error_and_not_a_panic() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("llama3_gqa", &gpu, exact());
    gpu.destroy();
    let error = block_on(engine.logits(&[1, 2, 3], false)).unwrap_err();
    assert!(error.to_string().contains("lost"), "{error}");
}
