//! Speculative decoding: on the CPU, where the number of tokens of a step changes no sum, every answer is the same to
//! the bit with and without proposals.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::rc::Rc;

use bayan_generate::{
    Constraint, Engine, EngineOptions, FinishReason, GenerateError, Job, JobId, MOST_PROPOSALS, Model, ModelOptions,
    Request, SampleSettings, StepSizes, TextPipeline, TokenScore, Usage,
};
use bayan_gpu::{GpuOptions, block_on};
use bayan_models::Adapter;
use bayan_weights::DirectorySource;

use crate::cpu::on_cpu;
use crate::serving::{Seen, finish, job, listed};
use crate::*;

const PROPOSALS: usize = 4;

/// The models whose answers can go back.
fn plain_models() -> Vec<String> {
    let recurrent = described(|layer| !layer.states.is_empty());
    models().into_iter().filter(|name| !recurrent.contains(name)).collect()
}

fn options() -> EngineOptions {
    EngineOptions { context: Some(128), ..exact() }
}

fn with_lookup(mut engine: Engine) -> Engine {
    engine.propose_by_lookup(PROPOSALS).unwrap();
    engine
}

/// A prompt that says things again, so that something is found.
fn repeated(count: usize, vocabulary: usize) -> Vec<u32> {
    let once = ids(count, vocabulary);
    [once.as_slice(), &once[..count / 2], &once[2..]].concat()
}

fn sampled(seed: u64) -> SampleSettings {
    SampleSettings { temperature: 0.7, top_k: 30, seed, ..Default::default() }
}

/// The tokens of one answer, which is ended from outside after `most`, and its statistics.
fn answer(engine: &mut Engine, request: Request<'_>, most: usize) -> (Vec<u32>, Usage) {
    let mut tokens = Vec::new();
    let mut collect = |_: usize, token: u32, _: Option<&TokenScore>| {
        tokens.push(token);
        if tokens.len() >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let usage = block_on(engine.generate_many(&[request], &mut collect)).unwrap().remove(0);
    (tokens, usage)
}

fn request<'a>(prompt: &'a [u32], settings: SampleSettings, stop: &'a [u32], max_tokens: usize) -> Request<'a> {
    Request { prompt, settings, bias: &[], stop, max_tokens, grammar: None, scores: None }
}

#[test]
fn lookups_change_no_token_of_any_model() {
    let (mut accepted, mut rejected) = (0, 0);
    for name in plain_models() {
        let (mut plain, mut speculating) = (on_cpu(&name, options()), with_lookup(on_cpu(&name, options())));
        let prompt = repeated(20, plain.sizes().vocab_size);
        for settings in [SampleSettings::default(), sampled(5)] {
            let expected = answer(&mut plain, request(&prompt, settings, &[], 45), usize::MAX);
            let (tokens, usage) = answer(&mut speculating, request(&prompt, settings, &[], 45), usize::MAX);
            assert_eq!((&tokens, usage.finish), (&expected.0, FinishReason::Length), "{name}, {settings:?}");
            assert_eq!((usage.accepted_tokens + usage.rejected_tokens) % PROPOSALS, 0, "{name}");
            assert_eq!((expected.1.accepted_tokens, expected.1.rejected_tokens), (0, 0));
            (accepted, rejected) = (accepted + usage.accepted_tokens, rejected + usage.rejected_tokens);
        }
        // What a step wrote behind the accepted tokens is not taken for cached ones.
        let next = [prompt.as_slice(), &ids(9, 300)].concat();
        let expected = answer(&mut plain, request(&next, sampled(6), &[], 9), usize::MAX);
        let found = answer(&mut speculating, request(&next, sampled(6), &[], 9), usize::MAX);
        assert_eq!((found.0, found.1.cached_tokens), (expected.0, expected.1.cached_tokens), "{name}");
    }
    assert!(accepted > 50 && rejected > 50, "{accepted} accepted, {rejected} rejected");
}

#[test]
fn answers_end_where_they_would_end_anyway() {
    let (mut plain, mut speculating) = (on_cpu("llama3_gqa", options()), on_cpu("llama3_gqa", options()));
    speculating.propose_by_draft(on_cpu("llama3_gqa", options()), PROPOSALS).unwrap();
    let prompt = repeated(16, 900);
    let (whole, _) = answer(&mut plain, request(&prompt, sampled(1), &[], 200), usize::MAX);
    assert_eq!(whole.len(), 128 - prompt.len(), "the context ends the answer");
    for most in [usize::MAX, 1, 2, 7, 13] {
        for limit in [1, 2, 4, 5, 6, 11, 200] {
            let expected = answer(&mut plain, request(&prompt, sampled(1), &[], limit), most);
            let found = answer(&mut speculating, request(&prompt, sampled(1), &[], limit), most);
            assert_eq!((&found.0, found.1.finish), (&expected.0, expected.1.finish), "{limit}, ended after {most}");
            assert!(whole.starts_with(&found.0));
            let cached = [plain.cached_tokens(), speculating.cached_tokens()];
            assert!(cached[1] >= prompt.len() - 1 + found.0.len().saturating_sub(1), "{cached:?}");
        }
    }
    for stop in [whole[0], whole[3], whole[9]] {
        let expected = answer(&mut plain, request(&prompt, sampled(1), &[stop], 60), usize::MAX);
        let found = answer(&mut speculating, request(&prompt, sampled(1), &[stop], 60), usize::MAX);
        assert_eq!((&found.0, found.1.finish), (&expected.0, FinishReason::Stop), "stop token {stop}");
    }
}

#[test]
fn a_model_is_its_own_best_draft() {
    let vocabulary = 900;
    let prompt = ids(30, vocabulary);
    // A draft of the same model agrees always, another one seldom; one with another vocabulary proposes unknown tokens.
    for (draft, all) in [("llama3_gqa", true), ("llama2_mha", false), ("mistral_swa", false)] {
        let mut plain = on_cpu("llama3_gqa", options());
        let mut speculating = on_cpu("llama3_gqa", options());
        speculating.propose_by_draft(on_cpu(draft, EngineOptions { context: Some(90), ..exact() }), 5).unwrap();
        for settings in [SampleSettings::default(), sampled(3)] {
            let (expected, _) = answer(&mut plain, request(&prompt, settings, &[], 80), usize::MAX);
            let (tokens, usage) = answer(&mut speculating, request(&prompt, settings, &[], 80), usize::MAX);
            assert_eq!(tokens, expected, "{draft}, {settings:?}");
            // Ten steps of six tokens each, until the draft model's context is full.
            let counts = (usage.accepted_tokens, usage.rejected_tokens);
            assert!(if all { counts == (50, 0) } else { counts.1 >= counts.0 }, "{draft}: {counts:?}");
        }
    }
}

/// Jobs of all kinds, those with proposals beside those that get none.
fn mixed(text: &TextPipeline) -> Vec<Job> {
    let grammar = text.tokenizer.grammars().unwrap().compile(&Constraint::Regex("[a-c]{30}".into())).unwrap();
    let plain = |i: usize| Job { settings: sampled(i as u64), ..job(repeated(14 + 3 * i, 900)[i..].to_vec(), 30) };
    let penalties = SampleSettings { repeat_penalty: 1.3, presence_penalty: 0.2, ..sampled(9) };
    let adapter = Some("tuned".to_string());
    vec![
        plain(0),
        Job { settings: SampleSettings::default(), ..plain(1) },
        Job { settings: penalties, ..plain(2) },
        Job { bias: vec![(5, 3.0), (9, -4.0)], ..plain(3) },
        Job { scores: Some(2), prompt_scores: Some(1), ..plain(4) },
        Job { grammar: Some(grammar), ..plain(5) },
        Job { adapter: adapter.clone(), settings: SampleSettings::default(), ..plain(6) },
        Job { adapter, settings: penalties, ..plain(7) },
        Job { owner: 4, max_tokens: 1, ..plain(8) },
    ]
}

#[test]
fn other_jobs_of_a_step_are_not_affected() {
    let name = "llama3_gqa";
    let text = block_on(TextPipeline::open(checkpoint(name).source().as_ref(), None)).unwrap();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/lora/llama3_r8_all/adapter_final");
    let adapter = block_on(Adapter::open(Rc::new(DirectorySource::new(root).unwrap()))).unwrap();
    for sizes in [StepSizes::Listed, StepSizes::Invariant] {
        let open = || {
            let mut engine = on_cpu(name, EngineOptions { sizes, ..listed(4) });
            engine.load_adapter("tuned", &adapter).unwrap();
            engine
        };
        let (mut plain, mut looked_up, mut drafted) = (open(), with_lookup(open()), open());
        let draft = on_cpu("llama3_k256", EngineOptions { sizes, ..listed(4) });
        drafted.propose_by_draft(draft, PROPOSALS).unwrap();
        let answers = |engine: &mut Engine| {
            let mut seen = Seen::default();
            let added: Vec<JobId> = mixed(&text).into_iter().map(|job| engine.add(job).unwrap()).collect();
            finish(engine, &mut seen);
            let proposed: Vec<usize> = added.iter().map(|id| seen.proposals(*id).into_iter().sum()).collect();
            (
                added.into_iter().map(|id| (seen.tokens(id), seen.bits(id), seen.finish(id))).collect::<Vec<_>>(),
                proposed,
            )
        };
        let (expected, none) = answers(&mut plain);
        assert_eq!(none, [0; 9]);
        for engine in [&mut looked_up, &mut drafted] {
            let (found, proposed) = answers(engine);
            for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "{sizes:?}, job {number}");
            }
            let has_some: Vec<bool> = proposed.iter().map(|&count| count > 0).collect();
            assert_eq!(
                has_some,
                [true, true, false, false, false, false, true, false, false],
                "{sizes:?}: {proposed:?}"
            );
        }
    }
}

#[test]
fn steps_that_verify_are_compiled_at_start() {
    let mut engine = with_lookup(on_cpu("qwen3_qknorm", listed(3)));
    // 1, 2 and 3 answers, with proposals and without; 16 and 32 tokens of a prompt, alone and beside these answers.
    assert_eq!(block_on(engine.warm_up(&mut |_, _| {})).unwrap(), 14);
    let mut seen = Seen::default();
    for count in 0..5 {
        engine.add(job(repeated(10 + count, 400), 20)).unwrap();
    }
    finish(&mut engine, &mut seen);
    assert_eq!(engine.compiled_steps(), 14);
}

#[test]
fn a_device_answers_greedily_as_without_proposals() {
    let (gpu, name) = (gpu(GpuOptions::default()), "llama3_gqa");
    let (mut plain, mut speculating) = (engine(name, &gpu, options()), with_lookup(engine(name, &gpu, options())));
    let prompt = repeated(20, 900);
    let (expected, _) = answer(&mut plain, request(&prompt, SampleSettings::default(), &[], 40), usize::MAX);
    let (tokens, usage) = answer(&mut speculating, request(&prompt, SampleSettings::default(), &[], 40), usize::MAX);
    assert_eq!(tokens, expected);
    assert!(usage.accepted_tokens + usage.rejected_tokens > 0, "{usage:?}");
}

#[test]
fn invariant_proposals_do_not_depend_on_company() {
    let gpu = gpu(GpuOptions::default());
    let options = EngineOptions { sizes: StepSizes::Invariant, policy: policy("q4_0"), ..listed(3) };
    let mut engine = with_lookup(engine("llama3_gqa", &gpu, options));
    let wanted = |i: usize| Job { settings: sampled(i as u64), ..job(repeated(12 + 9 * i, 900), 24) };
    let mut answers = |together: bool| {
        engine.reset();
        let (mut seen, mut added) = (Seen::default(), Vec::new());
        for i in 0..3 {
            added.push(engine.add(wanted(i)).unwrap());
            if !together {
                finish(&mut engine, &mut seen);
            }
        }
        finish(&mut engine, &mut seen);
        added.into_iter().map(|id| (seen.tokens(id), seen.proposals(id))).collect::<Vec<_>>()
    };
    let alone = answers(false);
    assert!(alone.iter().all(|(_, proposals)| proposals[0] + proposals[1] > 0), "{alone:?}");
    assert_eq!(answers(true), alone);
}

#[test]
fn what_cannot_be_verified_is_refused() {
    let name = &described(|layer| !layer.states.is_empty())[0];
    let error = on_cpu(name, options()).propose_by_lookup(3).unwrap_err();
    assert!(matches!(error, GenerateError::RecurrentProposals { what: "the model" }), "{error}");
    let mut engine = on_cpu("llama3_gqa", options());
    let error = engine.propose_by_draft(on_cpu(name, options()), 3).unwrap_err();
    assert!(error.to_string().contains("the draft model has recurrent layers"), "{error}");
    for count in [0, MOST_PROPOSALS + 1, usize::MAX] {
        let error = engine.propose_by_lookup(count).unwrap_err();
        assert!(error.to_string().contains("expected 1 to 31"), "{error}");
    }
    engine.propose_by_lookup(MOST_PROPOSALS).unwrap();
}

#[test]
fn a_draft_with_another_tokenizer_is_refused() {
    let cpu = bayan_generate::Cpu::open(Some(2)).unwrap();
    let open = |name: &str| {
        let options = ModelOptions { engine: options(), chat_template: None };
        block_on(Model::open_on_cpu(&checkpoint(name), &cpu, &options, &mut |_, _| {})).unwrap()
    };
    let mut model = open("llama3_gqa");
    let error = model.propose_by_draft(open("qwen3_qknorm"), 4).unwrap_err();
    assert!(matches!(error, GenerateError::DraftTokenizer { .. }), "{error}");
    assert!(error.to_string().contains("another tokenizer: token"), "{error}");
    assert!(model.engine.draft().is_none());
    model.propose_by_draft(open("llama3_gqa"), 4).unwrap();
    assert!(model.engine.draft().is_some());
}
