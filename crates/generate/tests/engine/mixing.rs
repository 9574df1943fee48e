//! Steps that read a piece of a prompt and compute the next tokens of the running answers together.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::rc::Rc;

use bayan_generate::{Engine, EngineOptions, Event, Job, JobId, SampleSettings, StepSizes};
use bayan_gpu::{GpuOptions, block_on};

use crate::cpu::on_cpu;
use crate::serving::{Seen, advance, finish, job, listed};
use crate::*;

/// Three answers that run while a long prompt is read: greedy, with penalties and biases, and drawn with scores.
fn answers(vocabulary: usize) -> [Job; 3] {
    let prompt = |i: usize| ids(5 + 9 * i, vocabulary)[i..].to_vec();
    let penalties = SampleSettings { temperature: 0.8, repeat_penalty: 1.3, seed: 5, ..Default::default() };
    let drawn = SampleSettings { temperature: 0.9, seed: 6, ..Default::default() };
    [
        job(prompt(0), 30),
        Job { settings: penalties, bias: vec![(7, 2.5)], ..job(prompt(1), 30) },
        Job { settings: drawn, scores: Some(2), ..job(prompt(2), 30) },
    ]
}

/// Tokens, and the bits of their scores.
type Answer = (Vec<u32>, Vec<(u32, u32, Vec<(u32, u32)>)>);

fn alone(engine: &mut Engine, job: Job) -> Answer {
    let mut seen = Seen::default();
    engine.reset();
    let id = engine.add(job).unwrap();
    finish(engine, &mut seen);
    (seen.tokens(id), seen.bits(id))
}

/// Reads a prompt of 100 tokens beside three answers. Returns all answers, that of the long prompt last.
fn beside_a_long_prompt(engine: &mut Engine, jobs: &[Job; 3], long: &Job) -> Vec<Answer> {
    engine.reset();
    let mut seen = Seen::default();
    let running: Vec<JobId> = jobs.iter().map(|job| engine.add(job.clone()).unwrap()).collect();
    while running.iter().any(|&id| seen.tokens(id).is_empty()) {
        advance(engine, &mut seen);
    }
    let long = engine.add(long.clone()).unwrap();
    // Each of seven pieces of 16 tokens comes with the next token of every answer; the long one waits.
    for piece in 0..7 {
        let before: Vec<usize> = running.iter().map(|&id| seen.tokens(id).len()).collect();
        advance(engine, &mut seen);
        let after: Vec<usize> = running.iter().map(|&id| seen.tokens(id).len()).collect();
        // With the first piece come also tokens of steps that were submitted before.
        let more: Vec<usize> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        assert!(more.iter().all(|&more| more == 1 || (piece == 0 && more > 1)), "beside piece {piece}: {more:?}");
        assert!(seen.tokens(long).is_empty(), "piece {piece} is not the last");
    }
    advance(engine, &mut seen);
    assert_eq!(seen.tokens(long).len(), 1, "its first token comes in the round after the last piece");
    finish(engine, &mut seen);
    running.into_iter().chain([long]).map(|id| (seen.tokens(id), seen.bits(id))).collect()
}

fn compare(engine: &mut Engine, name: &str, to_the_bit: bool) {
    let vocabulary = engine.sizes().vocab_size;
    let (jobs, long) = (answers(vocabulary), Job { scores: Some(1), ..job(ids(100, vocabulary), 5) });
    let expected: Vec<Answer> = jobs.iter().chain([&long]).map(|job| alone(engine, job.clone())).collect();
    let found = beside_a_long_prompt(engine, &jobs, &long);
    for (number, (expected, found)) in expected.iter().zip(&found).enumerate() {
        assert_eq!(expected.0, found.0, "{name}, tokens of answer {number}");
        assert!(!to_the_bit || expected.1 == found.1, "{name}, scores of answer {number}");
    }
}

fn pieces() -> EngineOptions {
    EngineOptions { prefill_chunk: Some(16), ..listed(4) }
}

#[test]
fn answers_go_on_beside_each_piece_of_a_prompt() {
    let gpu = gpu(GpuOptions::default());
    let windowed = described(|layer| layer.window.is_some());
    for name in ["llama3_gqa", &windowed[0]] {
        compare(&mut engine(name, &gpu, pieces()), name, false);
    }
}

#[test]
fn on_the_cpu_mixed_steps_change_no_bit() {
    for (name, cache) in [("llama3_gqa", CacheFormat::F16), ("qwen3_qknorm", CacheFormat::Q8_0)] {
        let options = EngineOptions { cache, policy: policy("q4_0"), ..pieces() };
        compare(&mut on_cpu(name, options), name, true);
    }
}

/// Prompts of these many tokens, with no beginning in common.
fn prompts(lengths: &[usize], vocabulary: usize) -> Vec<Job> {
    let every = ids(200, vocabulary);
    lengths.iter().enumerate().map(|(i, &length)| job(every[3 * i..3 * i + length].to_vec(), 5)).collect()
}

/// Adds the jobs at once; the number of rounds until each has its first token, and the answers.
fn rounds_together(engine: &mut Engine, jobs: &[Job]) -> Vec<(usize, Answer)> {
    engine.reset();
    let mut seen = Seen::default();
    let added: Vec<JobId> = jobs.iter().map(|job| engine.add(job.clone()).unwrap()).collect();
    let mut first = vec![0; jobs.len()];
    for round in 1.. {
        advance(engine, &mut seen);
        let begun = |id: &JobId| !seen.tokens(*id).is_empty();
        first
            .iter_mut()
            .zip(&added)
            .filter(|(first, id)| **first == 0 && begun(id))
            .for_each(|(first, _)| *first = round);
        if first.iter().all(|&first| first > 0) {
            break;
        }
    }
    finish(engine, &mut seen);
    first.into_iter().zip(added).map(|(first, id)| (first, (seen.tokens(id), seen.bits(id)))).collect()
}

#[test]
fn several_prompts_are_read_in_one_step() {
    let options = EngineOptions { prefill_chunk: Some(64), policy: policy("q4_0"), ..listed(4) };
    for name in ["llama3_gqa", &described(|layer| layer.window.is_some())[0]] {
        let mut engine = on_cpu(name, options.clone());
        let vocabulary = engine.sizes().vocab_size;
        // With the first prompt's 16 tokens there is room for 48 more: two short prompts, and the last one's first part.
        let jobs = prompts(&[17, 10, 12, 40], vocabulary);
        let expected: Vec<Answer> = jobs.iter().map(|job| alone(&mut engine, job.clone())).collect();
        let found = rounds_together(&mut engine, &jobs);
        let rounds: Vec<usize> = found.iter().map(|(first, _)| *first).collect();
        assert_eq!(rounds, [1, 1, 1, 3], "{name}: rounds until the first token");
        let found: Vec<Answer> = found.into_iter().map(|(_, answer)| answer).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn prompts_that_begin_alike_are_read_once() {
    let mut engine = on_cpu("llama3_gqa", EngineOptions { prefill_chunk: Some(64), ..listed(4) });
    let vocabulary = engine.sizes().vocab_size;
    let mut jobs = prompts(&[33, 33], vocabulary);
    let shared = jobs[0].prompt[..30].to_vec();
    jobs[1].prompt[..30].copy_from_slice(&shared);
    let expected: Vec<Answer> = jobs.iter().map(|job| alone(&mut engine, job.clone())).collect();
    let found = rounds_together(&mut engine, &jobs);
    assert_eq!([found[0].0, found[1].0], [1, 3], "the second takes 30 tokens of the first in the second round");
    assert_eq!(found.into_iter().map(|(_, answer)| answer).collect::<Vec<_>>(), expected);
}

#[test]
fn on_a_gpu_several_prompts_give_the_same_answers() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("llama3_gqa", &gpu, EngineOptions { prefill_chunk: Some(64), ..listed(4) });
    let jobs = prompts(&[17, 10, 12, 40], engine.sizes().vocab_size);
    let expected: Vec<Answer> = jobs.iter().map(|job| alone(&mut engine, job.clone())).collect();
    let found = rounds_together(&mut engine, &jobs);
    assert_eq!(found.iter().map(|(first, _)| *first).max(), Some(3));
    for ((_, found), expected) in found.iter().zip(&expected) {
        assert_eq!(found.0, expected.0);
    }
}

/// An adapter of the fixtures.
fn adapter(case: &str) -> bayan_models::Adapter {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/lora").join(case);
    block_on(bayan_models::Adapter::open(Rc::new(DirectorySource::new(root).unwrap()))).unwrap()
}

#[test]
fn answers_with_several_adapters_share_steps_to_the_bit() {
    let names = [Some("initial"), Some("final"), None];
    let answers = |adapters: &[Option<&str>], vocabulary: usize| -> Vec<Job> {
        let jobs = prompts(&[20, 25, 30], vocabulary).into_iter().zip(adapters);
        let with =
            |(job, name): (Job, &Option<&str>)| Job { adapter: name.map(str::to_string), scores: Some(1), ..job };
        jobs.map(with).collect()
    };
    let open = |sizes| {
        let mut engine = on_cpu("llama3_gqa", EngineOptions { sizes, ..pieces() });
        for (name, case) in [("initial", "llama3_r8_all/adapter_init"), ("final", "llama3_r8_all/adapter_final")] {
            engine.load_adapter(name, &adapter(case)).unwrap();
        }
        engine
    };
    let mut engine = open(StepSizes::Listed);
    let jobs = answers(&names, engine.sizes().vocab_size);
    let expected: Vec<Answer> = jobs.iter().map(|job| alone(&mut engine, job.clone())).collect();
    assert_ne!(expected[0].0, alone(&mut engine, Job { adapter: None, ..jobs[0].clone() }).0, "the adapter changes it");
    let before = engine.compiled_steps();
    let found = rounds_together(&mut engine, &jobs);
    assert_eq!(found.into_iter().map(|(_, answer)| answer).collect::<Vec<_>>(), expected);
    let shared = engine.compiled_steps() - before;
    assert!(shared > 0, "steps for several adapters were made");
    // They belong to these adapters: one more, and they are gone.
    engine.load_adapter("third", &adapter("llama3_r8_all/adapter_final")).unwrap();
    assert_eq!(engine.compiled_steps(), before);
    // With steps of one size each, they take turns: no step is made for several adapters.
    let mut turns = open(StepSizes::Invariant);
    let expected: Vec<Answer> = jobs.iter().map(|job| alone(&mut turns, job.clone())).collect();
    let before = turns.compiled_steps();
    let found = rounds_together(&mut turns, &jobs);
    assert_eq!(found.into_iter().map(|(_, answer)| answer).collect::<Vec<_>>(), expected);
    assert_eq!(turns.compiled_steps(), before);
}

#[test]
fn recurrent_models_take_turns_with_a_prompt() {
    let recurrent = described(|layer| !layer.states.is_empty());
    let name = &recurrent[0];
    let mut engine = on_cpu(name, pieces());
    let vocabulary = engine.sizes().vocab_size;
    let (jobs, long) = (answers(vocabulary), job(ids(97, vocabulary), 5));
    let expected: Vec<Answer> = jobs.iter().chain([&long]).map(|job| alone(&mut engine, job.clone())).collect();
    let mut seen = Seen::default();
    engine.reset();
    let running: Vec<JobId> = jobs.iter().chain([&long]).map(|job| engine.add(job.clone()).unwrap()).collect();
    finish(&mut engine, &mut seen);
    let found: Vec<Answer> = running.into_iter().map(|id| (seen.tokens(id), seen.bits(id))).collect();
    assert_eq!(expected, found, "{name}");
}

#[test]
fn cancelled_answers_leave_a_mixed_step() {
    let mut engine = on_cpu("llama3_gqa", pieces());
    let vocabulary = engine.sizes().vocab_size;
    let (jobs, long) = (answers(vocabulary), job(ids(100, vocabulary), 5));
    let expected: Vec<Answer> = jobs.iter().chain([&long]).map(|job| alone(&mut engine, job.clone())).collect();
    engine.reset();
    let mut seen = Seen::default();
    let running: Vec<JobId> = jobs.iter().map(|job| engine.add(job.clone()).unwrap()).collect();
    while running.iter().any(|&id| seen.tokens(id).is_empty()) {
        advance(&mut engine, &mut seen);
    }
    let long = engine.add(long).unwrap();
    // The first answer is cancelled between two pieces, the second by its own event in the middle of a mixed step.
    advance(&mut engine, &mut seen);
    assert!(engine.cancel(running[0]));
    let stopped = running[1];
    block_on(engine.advance(&mut |id, event| {
        let ends = id == stopped && matches!(event, Event::Token { .. });
        seen.events.entry(id).or_default().push(event);
        if ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }))
    .unwrap();
    finish(&mut engine, &mut seen);
    for (number, id) in running.iter().enumerate().take(2) {
        let tokens = seen.tokens(*id);
        assert!(tokens.len() < 10 && expected[number].0.starts_with(&tokens), "answer {number}: {tokens:?}");
    }
    for (number, id) in [(2, running[2]), (3, long)] {
        assert_eq!((seen.tokens(id), seen.bits(id)), expected[number], "answer {number}");
    }
}
