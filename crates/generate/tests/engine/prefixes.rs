//! Prefixes that jobs share: the same answers with a prefix from another slot, in every cache format; which slot is
//! overwritten; whose prefixes are found.

use bayan_generate::{EngineOptions, Event, Job, JobId, SampleSettings, StepSizes};
use bayan_gpu::GpuOptions;
use bayan_models::CacheFormat;

use crate::serving::{Seen, advance, finish, job, listed};
use crate::*;

/// Prompt tokens that were not computed, from the report at the end.
fn reused(seen: &Seen, id: JobId) -> usize {
    let last = seen.events.get(&id).and_then(|events| events.last());
    if let Some(Event::Ended(usage)) = last { usage.cached_tokens } else { panic!("job {id} has not ended") }
}

fn run_one(engine: &mut Engine, job: Job) -> (usize, Vec<u32>) {
    let mut seen = Seen::default();
    let id = engine.add(job).unwrap();
    finish(engine, &mut seen);
    (reused(&seen, id), seen.tokens(id))
}

/// Two prompts with 70 tokens in common.
fn alike(vocabulary: usize) -> [Vec<u32>; 2] {
    let first = ids(80, vocabulary);
    [first.clone(), [&first[..70], &[9, 4, 7, 11, 3]].concat()]
}

#[test]
fn a_prefix_of_a_running_job_changes_no_bit() {
    let gpu = gpu(GpuOptions::default());
    let invariant = || EngineOptions { sizes: StepSizes::Invariant, ..listed(3) };
    let windowed = described(|layer| layer.window.is_some());
    for (name, cache) in [
        ("llama3_gqa", CacheFormat::F32),
        ("llama3_gqa", CacheFormat::F16),
        ("llama3_gqa", CacheFormat::Q8_0),
        ("llama3_gqa", CacheFormat::Q4_0),
        (windowed[0].as_str(), CacheFormat::F32),
    ] {
        let format = cache.name();
        let mut engine = engine(name, &gpu, EngineOptions { cache, ..invariant() });
        let prompts = alike(engine.decoder().sizes().vocab_size);
        let scored = |prompt: &[u32], count| Job { scores: Some(2), ..job(prompt.to_vec(), count) };
        let mut alone = Seen::default();
        let expected: Vec<_> = prompts
            .iter()
            .zip([20, 6])
            .map(|(prompt, count)| {
                engine.reset();
                let id = engine.add(scored(prompt, count)).unwrap();
                finish(&mut engine, &mut alone);
                (alone.tokens(id), alone.bits(id))
            })
            .collect();
        engine.reset();
        let mut seen = Seen::default();
        let first = engine.add(scored(&prompts[0], 20)).unwrap();
        // Three pieces of the prompt, then some tokens.
        for _ in 0..6 {
            advance(&mut engine, &mut seen);
        }
        assert!((1..20).contains(&seen.tokens(first).len()), "{name}: the first job answers");
        let second = engine.add(scored(&prompts[1], 6)).unwrap();
        finish(&mut engine, &mut seen);
        // Whole pieces of 32 tokens; a ring may have lost what it needs to go back.
        let kept = reused(&seen, second);
        assert!(kept == 64 || name == windowed[0], "{name}: {kept} tokens kept");
        for (id, expected) in [first, second].into_iter().zip(&expected) {
            assert_eq!(&(seen.tokens(id), seen.bits(id)), expected, "{name}, cache in {format}, job {id}");
        }
    }
}

/// Six answers to one prompt, of which two wait for a slot.
fn ask_several(engine: &mut Engine) {
    let prompt = ids(75, engine.decoder().sizes().vocab_size);
    let settings = |seed| SampleSettings { temperature: 0.9, seed, ..Default::default() };
    let wanted = |seed| Job { settings: settings(seed), ..job(prompt.clone(), 8) };
    let expected: Vec<Vec<u32>> = (0..6)
        .map(|seed| {
            engine.reset();
            run_one(engine, wanted(seed)).1
        })
        .collect();
    engine.reset();
    let mut seen = Seen::default();
    let added: Vec<JobId> = (0..6).map(|seed| engine.add(wanted(seed)).unwrap()).collect();
    finish(engine, &mut seen);
    for (number, id) in added.into_iter().enumerate() {
        assert_eq!(reused(&seen, id), if number == 0 { 0 } else { prompt.len() - 1 }, "answer {number}");
        assert_eq!(seen.tokens(id), expected[number], "answer {number}");
    }
}

#[test]
fn several_answers_to_a_prompt_compute_it_once() {
    let gpu = gpu(GpuOptions::default());
    ask_several(&mut engine("llama3_gqa", &gpu, listed(4)));
    ask_several(&mut cpu::on_cpu("llama3_gqa", listed(4)));
}

#[test]
fn the_least_recently_used_prefix_is_overwritten() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("llama3_gqa", &gpu, EngineOptions { kept: 2, ..listed(1) });
    assert_eq!((engine.sequences(), engine.slots()), (1, 3));
    let prompt = |number: usize| ids(60 + number, 400)[number..].to_vec();
    let mut ask = |number: usize| run_one(&mut engine, job(prompt(number), 3)).0;
    assert_eq!([ask(0), ask(1), ask(2)], [0, 0, 0]);
    assert_eq!([ask(0), ask(1), ask(2), ask(0)], [59; 4], "three prefixes are kept beside one running answer");
    assert_eq!(ask(3), 0);
    assert_eq!([ask(0), ask(2), ask(3)], [59; 3], "prompt 1 was used least recently");
    assert_eq!(ask(1), 0);
}

#[test]
fn a_common_beginning_leaves_the_longer_conversation() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("llama3_gqa", &gpu, listed(3));
    let long = ids(100, 400);
    let other = [&long[..40], &[5, 6, 7, 8]].concat();
    let expected = run_one(&mut engine, job(other.clone(), 5)).1;
    engine.reset();
    assert_eq!(run_one(&mut engine, job(long.clone(), 5)).0, 0);
    assert_eq!(run_one(&mut engine, job(other, 5)), (40, expected), "copied to another slot");
    assert_eq!(run_one(&mut engine, job(long, 5)).0, 99, "and the longer one is still whole");
}

#[test]
fn prefixes_of_running_jobs_belong_to_their_owner() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("llama3_gqa", &gpu, listed(4));
    let prompt = ids(60, 300);
    let owned = |owner: u64, count| Job { owner, ..job(prompt.clone(), count) };
    let mut seen = Seen::default();
    let first = engine.add(owned(1, 40)).unwrap();
    for _ in 0..6 {
        advance(&mut engine, &mut seen);
    }
    assert!(!seen.tokens(first).is_empty(), "it answers");
    let others = [2, 1, 2].map(|owner| engine.add(owned(owner, 4)).unwrap());
    finish(&mut engine, &mut seen);
    assert_eq!(others.map(|id| reused(&seen, id)), [0, 59, 59], "the third finds what the first of its owner computed");
    for id in others {
        assert_eq!(seen.tokens(id), seen.tokens(first)[..4]);
    }
}
