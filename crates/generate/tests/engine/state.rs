//! The cache of a conversation, saved and restored: the answers that follow are those of the engine that went on.

use std::ops::ControlFlow;

use bayan_generate::{Cpu, Generation};
use bayan_generate::{Engine, EngineOptions, GenerateError, Model, ModelOptions, SampleSettings, StateError};
use bayan_gpu::{GpuOptions, block_on};
use bayan_models::CacheFormat;

use crate::cpu::on_cpu;
use crate::*;

fn options() -> EngineOptions {
    EngineOptions { context: Some(160), prefill_chunk: Some(16), cache: CacheFormat::Q8_0, ..exact() }
}

/// New tokens, and how many tokens of the prompt were in the cache.
fn goes_on(engine: &mut Engine, prompt: &[u32]) -> (Vec<u32>, usize) {
    let mut tokens = Vec::new();
    let mut collect = |token| {
        tokens.push(token);
        ControlFlow::Continue(())
    };
    let usage = block_on(engine.generate(prompt, &SampleSettings::default(), &[], &[], 6, &mut collect)).unwrap();
    (tokens, usage.cached_tokens)
}

fn saved(engine: &Engine) -> Vec<u8> {
    block_on(engine.save_state("m")).unwrap()
}

/// An engine that answered, and the prompt of the next turn.
fn answered(mut engine: Engine) -> (Engine, Vec<u32>) {
    let prompt = ids(70, engine.sizes().vocab_size);
    let answer = goes_on(&mut engine, &prompt).0;
    (engine, [&prompt[..], &answer[..], &[4, 5]].concat())
}

#[test]
fn a_restored_conversation_goes_on_as_it_would_have() {
    let gpu = gpu(GpuOptions::default());
    let open = |name: &str, on_gpu: bool| {
        if on_gpu { engine(name, &gpu, options()) } else { on_cpu(name, options()) }
    };
    // Every position, rings of windows, keys shared by layers, short convolutions, Mamba-2 with attention.
    for (name, on_gpu) in
        [("qwen3_qknorm", true), ("gemma3_text", false), ("gemma4", false), ("lfm2", false), ("falcon_h1", false)]
    {
        let (mut first, next) = answered(open(name, on_gpu));
        let bytes = saved(&first);
        let mut other = open(name, on_gpu);
        // Something else was in the cache.
        goes_on(&mut other, &[7, 8, 9]);
        let held = other.restore_state("m", &bytes).unwrap();
        assert!(held >= 75, "{name}: {held}");
        assert_eq!(saved(&other), bytes, "{name}");
        assert_eq!(goes_on(&mut other, &next), goes_on(&mut first, &next), "{name}");
    }
}

#[test]
fn states_of_others_and_damaged_ones_are_refused() {
    let (mut first, next) = answered(on_cpu("qwen3_qknorm", options()));
    let bytes = saved(&first);
    let mut refused = |model: &str, bytes: &[u8]| first.restore_state(model, bytes).unwrap_err();
    let error = refused("other", &bytes).to_string();
    assert!(error.contains("another model") && error.contains("expected other, got m"), "{error}");
    let mut cut: Vec<Vec<u8>> =
        (0..60).chain([bytes.len() / 2, bytes.len() - 1]).map(|n| bytes[..n].to_vec()).collect();
    cut.extend((0..bytes.len()).step_by(bytes.len() / 97).map(|at| {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        changed
    }));
    // A right checksum over wrong contents.
    for (from, to) in
        [("\"tokens\":7", "\"tokens\":9"), ("\"written\":7", "\"written\":2"), ("{\"model\"", "[\"model\"")]
    {
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect(from);
        let mut changed = bytes[..bytes.len() - 4].to_vec();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        changed.extend_from_slice(&crc32fast::hash(&changed).to_le_bytes());
        cut.push(changed);
    }
    cut.iter().for_each(|bytes| assert!(matches!(refused("m", bytes), StateError::Damaged(_)), "{}", bytes.len()));
    // Nothing of all this changed the cache.
    // The last token of an answer is not in the cache.
    assert_eq!(goes_on(&mut first, &next).1, next.len() - 3);
    for options in
        [EngineOptions { cache: CacheFormat::F16, ..options() }, EngineOptions { context: Some(70), ..options() }]
    {
        let mut other = on_cpu("qwen3_qknorm", options);
        assert!(matches!(other.restore_state("m", &bytes), Err(StateError::OtherCache { .. })));
        assert!(matches!(block_on(other.save_state("m")), Err(GenerateError::State(StateError::Empty))));
    }
    let mut other = on_cpu("gemma3_text", options());
    assert!(matches!(other.restore_state("m", &bytes), Err(StateError::OtherCache { .. })));
}

#[test]
fn a_checkpoint_is_known_by_its_numbers() {
    let mut found: Vec<String> =
        models().iter().map(|name| block_on(checkpoint(name).fingerprint()).unwrap()).collect();
    assert_eq!(found[0], block_on(checkpoint(&models()[0]).fingerprint()).unwrap());
    let all = found.len();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len(), all);
}

#[test]
fn a_model_scores_every_token_of_its_answer() {
    let cpu = Cpu::open(Some(2)).expect("threads");
    let checkpoint = checkpoint("qwen3_qknorm");
    let mut model = block_on(Model::open_on_cpu(&checkpoint, &cpu, &ModelOptions::default(), &mut |_, _| {})).unwrap();
    let generation = Generation { max_tokens: Some(6), ignore_eos: true, scores: Some(2), ..Default::default() };
    let (mut text, mut scored) = (String::new(), Vec::new());
    let answer = block_on(model.generate_scored(&ids(9, 200), &generation, &mut |piece, score| {
        text.push_str(piece);
        scored.extend(score.cloned());
        ControlFlow::Continue(())
    }))
    .unwrap();
    assert_eq!((text, scored.iter().map(|score| score.id).collect::<Vec<_>>()), (answer.text, answer.ids));
    // The first token has the log-probability of the softmax over the prompt's logits.
    let logits = block_on(model.engine.logits(&ids(9, 200), false)).unwrap().concat();
    let expected = f64::from(logits[scored[0].id as usize]) - bayan_generate::log_sum(&logits);
    assert!((f64::from(scored[0].logprob) - expected).abs() < 1e-4, "{} and {expected}", scored[0].logprob);
    assert_eq!((scored.len(), scored[0].top.len(), scored[0].top[0].0), (6, 2, scored[0].id));
}
