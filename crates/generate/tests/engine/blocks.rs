//! The cache in blocks: memory for the positions that exist, prefixes that are stored once, and jobs that wait when
//! blocks run out.

use bayan_generate::{EngineOptions, Event, FinishReason, Job, JobId, StepSizes};
use bayan_gpu::{GpuOptions, block_on};
use bayan_models::{BLOCK, CacheFormat};

use crate::serving::{Seen, advance, finish, job, listed};
use crate::*;

/// Positions that the slots have.
fn taken(engine: &Engine) -> usize {
    let (positions, free) = engine.cache_positions();
    positions - free
}

/// Prompts of 40 to 64 tokens that begin differently.
fn prompts(engine: &Engine) -> Vec<Vec<u32>> {
    let vocabulary = engine.decoder().sizes().vocab_size;
    (0..5).map(|number| ids(40 + 7 * number, vocabulary)[number..].to_vec()).collect()
}

/// Five jobs over a cache that holds one of them to its end: the same tokens and log-probabilities as alone.
fn ask_too_much(engine: &mut Engine) {
    let jobs: Vec<Job> =
        prompts(engine).into_iter().map(|prompt| Job { scores: Some(2), ..job(prompt, 130) }).collect();
    let mut alone = Seen::default();
    let mut expected = Vec::new();
    for job in &jobs {
        engine.reset();
        let id = engine.add(job.clone()).unwrap();
        finish(engine, &mut alone);
        expected.push((alone.tokens(id), alone.bits(id)));
    }
    assert_eq!(engine.preemptions(), 0, "one job has room");
    engine.reset();
    let mut seen = Seen::default();
    let added: Vec<JobId> = jobs.iter().map(|job| engine.add(job.clone()).unwrap()).collect();
    finish(engine, &mut seen);
    assert!(engine.preemptions() > 0, "a job had to wait in the middle");
    for (id, expected) in added.into_iter().zip(expected) {
        assert_eq!(seen.finish(id), Some(FinishReason::Length));
        assert_eq!((seen.tokens(id), seen.bits(id)), expected, "job {id}");
    }
    engine.reset();
    assert_eq!(taken(engine), 0);
}

#[test]
fn jobs_that_find_no_room_go_on_later_with_the_same_bits() {
    let small = |sizes| EngineOptions { cache_positions: Some(4 * BLOCK), sizes, context: Some(256), ..listed(4) };
    let gpu = gpu(GpuOptions::default());
    for cache in [CacheFormat::F16, CacheFormat::Q4_0] {
        let options = EngineOptions { cache, ..small(StepSizes::Invariant) };
        ask_too_much(&mut engine("llama3_gqa", &gpu, options));
    }
    ask_too_much(&mut cpu::on_cpu("llama3_gqa", small(StepSizes::Listed)));
    let others = [described(|layer| layer.window.is_some()), described(|layer| !layer.states.is_empty())];
    for name in others.iter().filter_map(|names| names.first()) {
        ask_too_much(&mut cpu::on_cpu(name, small(StepSizes::Listed)));
    }
}

#[test]
fn a_job_that_waits_in_the_middle_can_be_cancelled() {
    let options = EngineOptions { cache_positions: Some(4 * BLOCK), context: Some(256), ..listed(4) };
    let mut engine = cpu::on_cpu("llama3_gqa", options);
    let mut seen = Seen::default();
    let added: Vec<JobId> = prompts(&engine).into_iter().map(|prompt| engine.add(job(prompt, 130)).unwrap()).collect();
    while engine.preemptions() == 0 {
        assert!(advance(&mut engine, &mut seen), "a job has to wait");
    }
    for &id in &added[1..] {
        assert!(engine.cancel(id));
    }
    finish(&mut engine, &mut seen);
    assert_eq!(seen.finish(added[0]), Some(FinishReason::Length));
    let begun = added[1..].iter().filter(|id| seen.cached(**id).is_some());
    assert!(begun.clone().count() > 0 && begun.into_iter().all(|id| seen.finish(*id) == Some(FinishReason::Stopped)));
}

#[test]
fn a_cache_smaller_than_a_context_is_refused() {
    let options = EngineOptions { cache_positions: Some(100), ..listed(2) };
    let cpu = bayan_generate::Cpu::open(Some(1)).unwrap();
    let opened = block_on(Engine::open_on_cpu(&checkpoint("llama3_gqa"), &cpu, &options, &mut |_, _| {}));
    let error = opened.err().expect("128 positions are needed").to_string();
    assert!(error.contains("100 positions") && error.contains("--cache-positions"), "{error}");
}

#[test]
fn memory_is_taken_for_positions_that_exist() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("llama3_gqa", &gpu, listed(3));
    assert_eq!((engine.cache_positions(), taken(&engine)), ((3 * 128, 3 * 128), 0));
    let prompt = ids(100, engine.decoder().sizes().vocab_size);
    let mut seen = Seen::default();
    engine.add(job(prompt[..20].to_vec(), 3)).unwrap();
    finish(&mut engine, &mut seen);
    assert_eq!(taken(&engine), BLOCK, "22 positions");
    engine.reset();
    let same: Vec<JobId> = (0..3).map(|_| engine.add(job(prompt.clone(), 20)).unwrap()).collect();
    while same.iter().any(|&id| seen.tokens(id).is_empty()) {
        advance(&mut engine, &mut seen);
    }
    assert_eq!(taken(&engine), BLOCK + 3 * BLOCK, "the first block is shared, each has its own second one");
    finish(&mut engine, &mut seen);
    assert!(same.iter().all(|&id| seen.tokens(id) == seen.tokens(same[0])));
}

#[test]
fn going_on_within_a_shared_block_leaves_others_as_they_are() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("llama3_gqa", &gpu, listed(2));
    let first = ids(100, engine.decoder().sizes().vocab_size);
    let second = [&first[..80], &[9, 4, 7]].concat();
    let third = [&first[..61], &[5, 3, 8, 1]].concat();
    let mut ask = |prompt: &[u32], anew: bool| {
        if anew {
            engine.reset();
        }
        let mut seen = Seen::default();
        let id = engine.add(job(prompt.to_vec(), 6)).unwrap();
        finish(&mut engine, &mut seen);
        let Some(Event::Ended(usage)) = seen.events[&id].last().cloned() else { panic!("it ended") };
        (usage.cached_tokens, seen.tokens(id))
    };
    let expected = [&first, &second, &third].map(|prompt| ask(prompt, true).1);
    assert_eq!(ask(&first, true), (0, expected[0].clone()));
    assert_eq!(ask(&second, false), (80, expected[1].clone()), "it shares the first block");
    assert_eq!(ask(&third, false), (61, expected[2].clone()), "it takes a slot, and writes within the first block");
    let (cached, tokens) = ask(&second, false);
    assert!(cached >= 61 && tokens == expected[1], "the other slot has what it had: {cached}");
}
