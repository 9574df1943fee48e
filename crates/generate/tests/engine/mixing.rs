//! Steps that read a piece of a prompt and compute the next tokens of the running answers together.

use std::ops::ControlFlow;

use bayan_generate::{Engine, EngineOptions, Event, Job, JobId, SampleSettings};
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
