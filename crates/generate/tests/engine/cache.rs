//! The cache between steps: prefixes, windows, states, quantized rows, the end of the context.

use std::ops::ControlFlow;

use bayan_generate::{Engine, EngineOptions, FinishReason, GenerateError, SampleSettings};
use bayan_gpu::{GpuOptions, block_on};
use bayan_models::CacheFormat;
use bayan_tensor::nmse;

use crate::*;

#[test]
fn prefixes_are_kept_and_runs_repeat() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("qwen3_qknorm", &gpu, EngineOptions { policy: policy("q4_0"), ..Default::default() });
    let prompt = ids(30, engine.decoder().sizes().vocab_size);
    let settings =
        SampleSettings { temperature: 1.0, top_k: 40, top_p: 0.95, repeat_penalty: 1.1, seed: 7, ..Default::default() };
    let sample = |engine: &mut Engine, prompt: &[u32]| {
        let mut tokens = Vec::new();
        let mut collect = |token| {
            tokens.push(token);
            ControlFlow::Continue(())
        };
        let usage = block_on(engine.generate(prompt, &settings, &[], &[], 12, &mut collect)).unwrap();
        (tokens, usage)
    };
    let (first, usage) = sample(&mut engine, &prompt);
    assert_eq!((usage.cached_tokens, usage.finish), (0, FinishReason::Length));
    let longer = [&prompt[..], &first[..], &[4, 5]].concat();
    let (kept, usage) = sample(&mut engine, &longer);
    assert!(usage.cached_tokens >= prompt.len() + first.len() - 1, "kept {} of {}", usage.cached_tokens, longer.len());
    engine.reset();
    assert_eq!(sample(&mut engine, &longer).0, kept, "a kept prefix changes nothing");
    engine.reset();
    assert_eq!(sample(&mut engine, &prompt).0, first, "same seed, same device: same tokens");
}

#[test]
fn layers_with_a_window_keep_a_ring_and_give_the_same() {
    let gpu = gpu(GpuOptions::default());
    for name in described(|layer| layer.window.is_some_and(|window| window < 100)).iter().map(String::as_str) {
        let open =
            |chunk| engine(name, &gpu, EngineOptions { context: Some(300), prefill_chunk: Some(chunk), ..exact() });
        // A chunk as long as the context leaves no room for a ring buffer; both round identically where the kernels are
        // the same.
        let (mut whole, mut ring) = (open(300), open(16));
        assert!(
            ring.cache_bytes() < whole.cache_bytes(),
            "{name}: {} and {} bytes",
            ring.cache_bytes(),
            whole.cache_bytes()
        );
        let vocabulary = whole.decoder().sizes().vocab_size;
        let prompt = ids(250, vocabulary);
        let (a, b) = (
            block_on(whole.logits(&prompt, true)).unwrap().concat(),
            block_on(ring.logits(&prompt, true)).unwrap().concat(),
        );
        assert!(nmse(&a, &b) < 1e-9, "{name}");
        assert_eq!(greedy(&mut whole, &prompt, 40), greedy(&mut ring, &prompt, 40), "{name}");
        // Go back to positions that are still cached, and to overwritten ones.
        for kept in [280, 240, 100, 3] {
            let other = [&prompt[..kept.min(250)], &ids(kept + 9, vocabulary)[kept..]].concat();
            assert_eq!(greedy(&mut whole, &other, 8), greedy(&mut ring, &other, 8), "{name}: {kept} tokens kept");
        }
    }
}

#[test]
fn recurrent_models_go_on_where_they_stopped_or_start_anew() {
    let gpu = gpu(GpuOptions::default());
    for name in described(|layer| !layer.states.is_empty()).iter().map(String::as_str) {
        let open = || engine(name, &gpu, EngineOptions { context: Some(200), prefill_chunk: Some(16), ..exact() });
        let (mut engine, mut fresh) = (open(), open());
        let prompt = ids(40, engine.decoder().sizes().vocab_size);
        let answer = greedy(&mut engine, &prompt, 12);
        // An answer that ended at a stop token: the state has read everything before it and nothing after.
        let mut ended = Vec::new();
        let mut collect = |token| {
            ended.push(token);
            ControlFlow::Continue(())
        };
        engine.reset();
        let stop = *answer.iter().find(|&t| *t != answer[0]).unwrap_or(&answer[11]);
        block_on(engine.generate(&prompt, &SampleSettings::default(), &[], &[stop], 12, &mut collect)).unwrap();
        let longer = [&prompt[..], &ended[..], &[4, 5, 6]].concat();
        let usage = block_on(
            engine.generate(&longer, &SampleSettings::default(), &[], &[], 1, &mut |_| ControlFlow::Continue(())),
        )
        .unwrap();
        assert_eq!(usage.cached_tokens, prompt.len() + ended.len(), "{name}");
        let mut after = |prompt: &[u32], kept: bool| {
            fresh.reset();
            let expected = greedy(&mut fresh, prompt, 8);
            assert_eq!(greedy(&mut engine, prompt, 8), expected, "{name}, {kept}");
        };
        after(&longer, true);
        // Go back to the middle, where the state cannot return to.
        after(&[&prompt[..20], &[9, 8, 7]].concat(), false);
    }
}

#[test]
fn quantized_caches_stay_near() {
    let gpu = gpu(GpuOptions::default());
    for name in ["llama3_gqa", "gemma2_softcap", "qwen3_qknorm"] {
        let open = |cache| {
            let mut engine = engine(name, &gpu, EngineOptions { cache, context: Some(256), ..exact() });
            let prompt = ids(150, engine.decoder().sizes().vocab_size);
            (
                block_on(engine.logits(&prompt, true)).unwrap().concat(),
                greedy(&mut engine, &prompt, 3).len(),
                engine.cache_bytes(),
            )
        };
        let (exact, _, most) = open(CacheFormat::F32);
        for (cache, bound, share) in
            [(CacheFormat::F16, 1e-5, 16), (CacheFormat::Q8_0, 1e-3, 9), (CacheFormat::Q4_0, 0.2, 5)]
        {
            let (logits, count, bytes) = open(cache);
            let error = nmse(&exact, &logits);
            assert!(error < bound && count == 3, "{name} {}: NMSE {error:.1e}", cache.name());
            assert_eq!(bytes, most / 32 * share, "{name} {}", cache.name());
        }
    }
}

#[test]
fn the_context_ends_openly() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("llama3_gqa", &gpu, EngineOptions { context: Some(24), ..exact() });
    let prompt = ids(20, engine.decoder().sizes().vocab_size);
    let mut count = 0;
    let mut counted = |_| {
        count += 1;
        ControlFlow::Continue(())
    };
    let usage = block_on(engine.generate(&prompt, &SampleSettings::default(), &[], &[], 100, &mut counted)).unwrap();
    assert_eq!((usage.finish, count), (FinishReason::ContextFull, 4));
    // Nothing was requested: no token is marked as cached that was not computed.
    engine.reset();
    let usage = block_on(
        engine.generate(&prompt[..8], &SampleSettings::default(), &[], &[], 0, &mut |_| ControlFlow::Continue(())),
    )
    .unwrap();
    assert_eq!((usage.generated_tokens, engine.cached_tokens()), (0, 7));
    let error = block_on(
        engine.generate(&ids(24, 1000), &SampleSettings::default(), &[], &[], 1, &mut |_| ControlFlow::Continue(())),
    )
    .unwrap_err();
    assert!(matches!(error, GenerateError::PromptTooLong { prompt: 24, context: 24 }), "{error}");
    let error = block_on(
        engine.generate(&[1_000_000], &SampleSettings::default(), &[], &[], 1, &mut |_| ControlFlow::Continue(())),
    )
    .unwrap_err();
    assert!(matches!(error, GenerateError::Token { .. }), "{error}");
    let error =
        block_on(engine.generate(&[], &SampleSettings::default(), &[], &[], 1, &mut |_| ControlFlow::Continue(())))
            .unwrap_err();
    assert!(matches!(error, GenerateError::EmptyPrompt), "{error}");
}
