//! Jobs that come and go: the same answers as alone, whatever else runs; few plans; scores; owners of cached prefixes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bayan_generate::{
    Engine, EngineOptions, Event, FinishReason, GenerateError, Job, JobId, SampleSettings, StepSizes,
};
use bayan_gpu::{GpuOptions, block_on};

use crate::*;

/// What was reported of each job.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) events: BTreeMap<JobId, Vec<Event>>,
    /// All jobs that got a token, in order.
    order: Vec<JobId>,
}

impl Seen {
    pub(crate) fn tokens(&self, id: JobId) -> Vec<u32> {
        let token = |event: &Event| if let Event::Token { id, .. } = event { Some(*id) } else { None };
        self.events.get(&id).into_iter().flatten().filter_map(token).collect()
    }

    pub(crate) fn finish(&self, id: JobId) -> Option<FinishReason> {
        let last = self.events.get(&id).and_then(|events| events.last());
        if let Some(Event::Ended(usage)) = last { Some(usage.finish) } else { None }
    }

    /// Accepted and rejected proposals.
    pub(crate) fn proposals(&self, id: JobId) -> [usize; 2] {
        match self.events.get(&id).and_then(|events| events.last()) {
            Some(Event::Ended(usage)) => [usage.accepted_tokens, usage.rejected_tokens],
            other => panic!("job {id}: {other:?}"),
        }
    }

    pub(crate) fn cached(&self, id: JobId) -> Option<usize> {
        let first = self.events.get(&id).and_then(|events| events.first());
        if let Some(Event::Started { cached_tokens }) = first { Some(*cached_tokens) } else { None }
    }

    /// The bits of all log-probabilities.
    pub(crate) fn bits(&self, id: JobId) -> Vec<(u32, u32, Vec<(u32, u32)>)> {
        let of = |score: &bayan_generate::TokenScore| {
            (score.id, score.logprob.to_bits(), score.top.iter().map(|(id, p)| (*id, p.to_bits())).collect())
        };
        let mut bits = Vec::new();
        for event in self.events.get(&id).into_iter().flatten() {
            match event {
                Event::Token { score, .. } => bits.extend(score.as_ref().map(of)),
                Event::Prompt(scores) => bits.extend(scores.iter().map(of)),
                _ => {}
            }
        }
        bits
    }
}

pub(crate) fn advance(engine: &mut Engine, seen: &mut Seen) -> bool {
    block_on(engine.advance(&mut |id, event| {
        if matches!(event, Event::Token { .. }) {
            seen.order.push(id);
        }
        seen.events.entry(id).or_default().push(event);
        ControlFlow::Continue(())
    }))
    .unwrap()
}

pub(crate) fn finish(engine: &mut Engine, seen: &mut Seen) {
    while advance(engine, seen) {}
    assert_eq!(engine.load(), (0, 0));
}

pub(crate) fn listed(sequences: usize) -> EngineOptions {
    EngineOptions { sizes: StepSizes::Listed, sequences, context: Some(128), prefill_chunk: Some(32), ..exact() }
}

pub(crate) fn job(prompt: Vec<u32>, max_tokens: usize) -> Job {
    Job { prompt, max_tokens, ..Default::default() }
}

#[test]
fn listed_sizes_answer_as_exact_ones() {
    let gpu = gpu(GpuOptions::default());
    for name in models().iter().map(String::as_str) {
        let mut plain = engine(name, &gpu, EngineOptions { context: Some(128), ..exact() });
        let mut serving = engine(name, &gpu, listed(2));
        let vocabulary = plain.decoder().sizes().vocab_size;
        let mut seen = Seen::default();
        let prompts = [19, 50].map(|count| ids(count + 3, vocabulary)[3..].to_vec());
        let added = prompts.clone().map(|prompt| serving.add(job(prompt, 6)).unwrap());
        finish(&mut serving, &mut seen);
        for (prompt, id) in prompts.iter().zip(added) {
            plain.reset();
            assert_eq!(seen.tokens(id), greedy(&mut plain, prompt, 6), "{name}, {} tokens", prompt.len());
        }
    }
}

#[test]
fn jobs_come_and_go_and_others_do_not_change() {
    let gpu = gpu(GpuOptions::default());
    let settings = |i: u64| SampleSettings {
        temperature: if i.is_multiple_of(2) { 0.0 } else { 0.9 },
        repeat_penalty: 1.0 + 0.2 * (i % 3) as f32,
        seed: i,
        ..Default::default()
    };
    let prompt = |i: u64| ids(5 + 9 * i as usize, 500)[i as usize..].to_vec();
    let wanted = |i: u64| Job { settings: settings(i), bias: vec![(7 + i as u32, 2.5)], ..job(prompt(i), 14) };
    let mut engine = engine("llama3_gqa", &gpu, listed(3));
    let mut alone = Seen::default();
    let expected: Vec<Vec<u32>> = (0..6)
        .map(|i| {
            engine.reset();
            let id = engine.add(wanted(i)).unwrap();
            finish(&mut engine, &mut alone);
            alone.tokens(id)
        })
        .collect();
    let mut seen = Seen::default();
    engine.reset();
    let mut added = BTreeMap::new();
    for round in 0..12 {
        if round % 2 == 0 {
            let i = round / 2;
            added.insert(i, engine.add(wanted(i)).unwrap());
        }
        advance(&mut engine, &mut seen);
        match round {
            // One in the middle of its answer, one while its prompt is read or queued.
            7 => assert!(engine.cancel(added[&1])),
            10 => assert!(engine.cancel(added[&5])),
            _ => {}
        }
    }
    assert!(!engine.cancel(999));
    finish(&mut engine, &mut seen);
    for (i, id) in &added {
        let expected = &expected[*i as usize];
        let tokens = seen.tokens(*id);
        match i {
            1 | 5 => assert!(tokens.len() < expected.len() && expected.starts_with(&tokens), "job {i}: {tokens:?}"),
            _ => assert_eq!((&tokens, seen.finish(*id)), (expected, Some(FinishReason::Length)), "job {i}"),
        }
    }
}

#[test]
fn a_long_prompt_does_not_stop_other_answers() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("qwen3_qknorm", &gpu, EngineOptions { prefill_chunk: Some(16), ..listed(2) });
    let mut seen = Seen::default();
    let short = engine.add(job(ids(4, 300), 60)).unwrap();
    for _ in 0..4 {
        advance(&mut engine, &mut seen);
    }
    let long = engine.add(job(ids(100, 300), 2)).unwrap();
    finish(&mut engine, &mut seen);
    let first = seen.order.iter().position(|&id| id == long).unwrap();
    // Seven pieces of 16 tokens: the short answer got a token beside each.
    assert!(first >= 3 + 7, "{:?}", seen.order);
    assert_eq!((seen.tokens(short).len(), seen.tokens(long).len()), (60, 2));
}

#[test]
fn plans_are_few_and_compiled_at_start() {
    let gpu = gpu(GpuOptions::default());
    let of_a_prompt = || {
        let mut engine = engine("mistral_swa", &gpu, listed(5));
        let opened = gpu.allocated_bytes();
        engine.prompt_kernels(32, 32).unwrap();
        gpu.allocated_bytes() - opened
    };
    let largest_bytes = of_a_prompt();
    let mut engine = engine("mistral_swa", &gpu, listed(5));
    let opened = gpu.allocated_bytes();
    let mut steps = 0;
    let compiled = block_on(engine.warm_up(&mut |_, _| steps += 1)).unwrap();
    // 1, 2, 4 and 5 answers; 16 and 32 tokens of a prompt; each of the one together with each of the other.
    assert_eq!((compiled, steps, engine.compiled_steps()), (14, 14, 14));
    let all_bytes = gpu.allocated_bytes() - opened;
    assert!(all_bytes < 4 * largest_bytes, "all steps take {all_bytes} bytes, a prompt's alone {largest_bytes}");
    let mut seen = Seen::default();
    for count in (1..90).step_by(7) {
        engine.add(job(ids(count, 400), count % 5 + 1)).unwrap();
        advance(&mut engine, &mut seen);
    }
    finish(&mut engine, &mut seen);
    assert_eq!(engine.compiled_steps(), 14);
}

#[test]
fn invariant_answers_are_equal_to_the_bit_in_any_company() {
    let gpu = gpu(GpuOptions::default());
    for (name, format) in [("llama3_gqa", "q4_0"), ("gemma2_softcap", "f32"), ("mistral_swa", "q8_0")] {
        let options = EngineOptions { sizes: StepSizes::Invariant, policy: policy(format), ..listed(6) };
        let mut engine = engine(name, &gpu, options);
        let prompt = |i: usize| ids(7 + 13 * i, 450)[i..].to_vec();
        let settings = |i: usize| SampleSettings { temperature: 0.7, seed: i as u64, ..Default::default() };
        let wanted = |i: usize| Job {
            settings: settings(i),
            scores: Some(3),
            prompt_scores: (i == 2).then_some(1),
            ..job(prompt(i), 9)
        };
        let mut alone = Seen::default();
        let expected: Vec<_> = (0..6)
            .map(|i| {
                engine.reset();
                let id = engine.add(wanted(i)).unwrap();
                finish(&mut engine, &mut alone);
                (alone.tokens(id), alone.bits(id))
            })
            .collect();
        // All together, then again with cached prefixes.
        engine.reset();
        for cached in [false, true] {
            let mut seen = Seen::default();
            let added: Vec<JobId> = (0..6).map(|i| engine.add(wanted(i)).unwrap()).collect();
            finish(&mut engine, &mut seen);
            for (i, id) in added.iter().enumerate() {
                assert_eq!((seen.tokens(*id), seen.bits(*id)), expected[i], "{name} {format}, prompt {i}, {cached}");
            }
            assert!(!cached || added.iter().any(|id| seen.cached(*id) > Some(0)), "{name}: no prefix was cached");
        }
    }
}

#[test]
fn recurrent_models_refuse_invariance() {
    let gpu = gpu(GpuOptions::default());
    let name = &described(|layer| !layer.states.is_empty())[0];
    let options = EngineOptions { sizes: StepSizes::Invariant, ..listed(2) };
    let error = block_on(Engine::open(&checkpoint(name), &gpu, &options, &mut |_, _| {})).err();
    assert!(matches!(error, Some(GenerateError::Recurrent)), "{error:?}");
}

#[test]
fn scores_are_those_of_the_logits() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("qwen2_bias", &gpu, listed(2));
    let prompt = ids(80, engine.decoder().sizes().vocab_size);
    let logits = block_on(engine.logits(&prompt, true)).unwrap();
    let mut seen = Seen::default();
    // A bias changes the choice and not the scores.
    let biased = Job { bias: vec![(11, 1e6)], scores: Some(2), prompt_scores: Some(4), ..job(prompt.clone(), 1) };
    let id = engine.add(biased).unwrap();
    finish(&mut engine, &mut seen);
    let mut scores = Vec::new();
    for event in &seen.events[&id] {
        match event {
            Event::Prompt(found) => scores.extend(found.clone()),
            Event::Token { score, .. } => scores.extend(score.clone()),
            _ => {}
        }
    }
    assert_eq!(scores.len(), 80);
    let error = engine.add(Job { scores: Some(21), ..job(prompt.clone(), 1) }).expect_err("too many").to_string();
    assert!(error.contains("at most 20"), "{error}");
    for (i, (score, row)) in scores.iter().zip(&logits).enumerate() {
        let total: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        let expected = |id: u32| f64::from(row[id as usize]) - total.ln();
        for (id, found) in score.top.iter().copied().chain([(score.id, score.logprob)]) {
            assert!((f64::from(found) - expected(id)).abs() < 1e-5, "token {i}: {found} and {}", expected(id));
        }
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
        assert!(score.top.iter().map(|entry| entry.0).eq(order.into_iter().take(score.top.len())), "token {i}");
        assert_eq!(score.id, prompt.get(i + 1).copied().unwrap_or(11));
        assert_eq!(score.top.len(), if i == 79 { 2 } else { 4 });
        assert!(score.top.is_sorted_by(|a, b| a.1 >= b.1) && score.top[0].1 >= score.logprob);
    }
}

#[test]
fn cached_prefixes_belong_to_their_owner() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("llama3_gqa", &gpu, listed(2));
    let prompt = ids(60, 300);
    let mut ask = |owner: u64| {
        let mut seen = Seen::default();
        let id = engine.add(Job { owner, ..job(prompt.clone(), 3) }).unwrap();
        finish(&mut engine, &mut seen);
        (seen.cached(id).unwrap(), seen.tokens(id))
    };
    let (cached, first) = ask(1);
    assert_eq!(cached, 0);
    assert_eq!(ask(1), (59, first.clone()));
    assert_eq!(ask(2), (0, first.clone()), "another owner computes the prompt anew");
    assert_eq!(ask(1), (59, first), "and the first one's cache is still there");
}

#[test]
fn rows_with_several_adapters_answer_as_each_alone() {
    let gpu = gpu(GpuOptions::default());
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/lora/llama3_r8_all");
    let open = |which: &str| {
        let source = DirectorySource::new(root.join(which)).unwrap();
        block_on(bayan_models::Adapter::open(Rc::new(source))).unwrap()
    };
    let adapters = [("first", open("adapter_init")), ("last", open("adapter_final"))];
    let mut plain = engine("llama3_gqa", &gpu, EngineOptions { context: Some(128), ..exact() });
    let prompt = ids(40, plain.decoder().sizes().vocab_size);
    let base = greedy(&mut plain, &prompt, 12);
    let mut serving = engine("llama3_gqa", &gpu, listed(4));
    let with = |adapter: Option<&str>| Job { adapter: adapter.map(str::to_string), ..job(prompt.clone(), 12) };
    assert!(matches!(serving.add(with(Some("last"))), Err(GenerateError::NoAdapter(_))));
    let mut expected = vec![(None, base.clone())];
    for (name, adapter) in &adapters {
        serving.load_adapter(name, adapter).unwrap();
        plain.attach(name, adapter, 1.0).unwrap();
        expected.push((Some(*name), greedy(&mut plain, &prompt, 12)));
        plain.detach(name);
    }
    assert_ne!(expected[0].1, expected[2].1, "the trained adapter changes the answer");
    assert!(matches!(serving.load_adapter("last", &adapters[1].1), Err(GenerateError::AdapterName(_))));
    // All together, twice: the second time each finds its own prefix.
    for round in 0..2 {
        let mut seen = Seen::default();
        let added: Vec<JobId> = expected.iter().map(|(name, _)| serving.add(with(*name)).unwrap()).collect();
        assert!(matches!(serving.unload_adapter("last"), Err(GenerateError::AdapterInUse(_))));
        finish(&mut serving, &mut seen);
        for ((name, tokens), id) in expected.iter().zip(added) {
            assert_eq!(&seen.tokens(id), tokens, "{name:?}, round {round}");
            assert_eq!(seen.cached(id), Some(if round == 0 { 0 } else { prompt.len() - 1 }), "{name:?}");
        }
    }
    // An adapter that is gone leaves the others, and its cached tokens are not found by a new one of its name.
    assert!(serving.unload_adapter("last").unwrap() && !serving.unload_adapter("last").unwrap());
    serving.load_adapter("last", &adapters[0].1).unwrap();
    let mut seen = Seen::default();
    let [renamed, plain] = [Some("last"), None].map(|name| serving.add(with(name)).unwrap());
    finish(&mut serving, &mut seen);
    assert_eq!((seen.tokens(renamed), seen.cached(renamed)), (expected[1].1.clone(), Some(0)));
    assert_eq!((seen.tokens(plain), seen.cached(plain)), (base, Some(prompt.len() - 1)));
}
