//! Log-likelihoods of continuations: the same as from the logits of each text alone, however items are packed.

use std::ops::ControlFlow;

use bayan_generate::{EngineOptions, GenerateError, Likelihood, ScoredText, StepSizes};
use bayan_gpu::{Disable, GpuOptions, block_on};

use crate::cpu::on_cpu;
use crate::*;

/// Tokens of a step, also of the plain engine's.
const CHUNK: usize = 48;

/// The log-likelihood from the logits after each token of the text. Tokens after its end fill up the last step, so that
/// one plan computes all texts.
fn alone(engine: &mut Engine, text: &ScoredText) -> Likelihood {
    let mut ids = text.ids.clone();
    ids.resize(ids.len().next_multiple_of(CHUNK), 0);
    let rows = block_on(engine.logits(&ids, true)).unwrap();
    let mut result = Likelihood { sum: 0.0, greedy: true };
    for at in text.from..text.ids.len() {
        let row = &rows[at - 1];
        let peak = row.iter().copied().fold(f32::MIN, f32::max);
        let total: f64 = row.iter().map(|&logit| f64::from(logit - peak).exp()).sum();
        let own = row[text.ids[at] as usize];
        result.sum += f64::from(own - peak) - total.ln();
        result.greedy &= own == peak;
    }
    result
}

/// Items of contexts with these lengths, whose continuations have such lengths.
fn items(vocabulary: usize, shapes: &[(usize, &[usize])]) -> Vec<Vec<ScoredText>> {
    let text = |seed: usize, context: usize, number: usize, count: usize| {
        let mut all = ids(context + seed, vocabulary)[seed..].to_vec();
        all.extend((0..count).map(|i| ((seed * 31 + number * 17 + i * 3 + 5) % vocabulary) as u32));
        ScoredText { ids: all, from: context }
    };
    let item = |(seed, &(context, counts)): (usize, &(usize, &[usize]))| {
        counts.iter().enumerate().map(|(number, &count)| text(seed, context, number, count)).collect()
    };
    shapes.iter().enumerate().map(item).collect()
}

fn scored(engine: &mut Engine, items: &[Vec<ScoredText>]) -> Vec<Vec<Likelihood>> {
    let mut found = vec![Vec::new(); items.len()];
    let mut keep = |item: usize, results: &[Likelihood]| {
        assert!(found[item].is_empty(), "item {item} ends once");
        found[item] = results.to_vec();
        ControlFlow::Continue(())
    };
    block_on(engine.likelihoods(items, &mut keep)).unwrap();
    found
}

const SHAPES: [(usize, &[usize]); 6] =
    [(70, &[1, 1, 1, 1]), (9, &[3, 1, 4]), (1, &[2, 2]), (33, &[5, 5, 2, 1]), (64, &[1]), (40, &[70, 3])];

#[test]
fn packed_items_score_as_their_texts_alone() {
    let gpu = gpu(GpuOptions::default());
    let options = EngineOptions { context: Some(3 * CHUNK), prefill_chunk: Some(CHUNK), ..exact() };
    for name in ["llama3_gqa", "mistral_swa", "gemma3_text", "jais", "lfm2", "falcon_h1"] {
        let mut packing = engine(name, &gpu, EngineOptions { sequences: 4, ..options.clone() });
        let mut plain = engine(name, &gpu, options.clone());
        let items = items(plain.sizes().vocab_size, &SHAPES);
        for (number, (item, results)) in items.iter().zip(scored(&mut packing, &items)).enumerate() {
            assert_eq!(item.len(), results.len(), "{name}, item {number}");
            for (text, result) in item.iter().zip(results) {
                let expected = alone(&mut plain, text);
                let distance = (result.sum - expected.sum).abs();
                assert!(
                    distance < 1e-4 * expected.sum.abs().max(1.0),
                    "{name}, item {number}: {result:?} {expected:?}"
                );
                assert_eq!(result.greedy, expected.greedy, "{name}, item {number}");
            }
        }
        assert_eq!(packing.cached_tokens(), 0);
        assert!(packing.compiled_steps() <= 6, "{name}: {} steps", packing.compiled_steps());
    }
}

/// Questions after common examples: of each the number of the examples' tokens that it has, of its own tokens, and of
/// those of its choices. The last of the second kind of examples are other ones.
fn after_examples(vocabulary: usize) -> Vec<Vec<ScoredText>> {
    let shapes: [(usize, usize, &[usize]); 12] = [
        (130, 20, &[1, 1, 1, 1]),
        (130, 9, &[1, 1, 1, 1]),
        (130, 31, &[6, 9, 2, 7]),
        (128, 12, &[1, 1]),
        (130, 20, &[1, 1, 1, 1]),
        (0, 45, &[3, 1]),
        (70, 25, &[1, 1, 1]),
        (130, 3, &[12, 5]),
        (64, 5, &[2, 2]),
        (130, 17, &[1, 1, 1, 1]),
        (130, 1, &[4, 30]),
        (110, 33, &[1, 1, 1, 1]),
    ];
    let examples = ids(130, vocabulary);
    let token = |seed: usize| ((seed * 31 + seed * seed * 7 + 11) % vocabulary) as u32;
    let item = |(number, &(common, own, counts)): (usize, &(usize, usize, &[usize]))| {
        let context = examples[..common].iter().copied().chain((0..own).map(|at| token(number * 50 + at)));
        let context: Vec<u32> = context.collect();
        let choice = |(choice, &count): (usize, &usize)| {
            let rest = (0..count).map(|at| token(900 + number * 70 + choice * 13 + at));
            ScoredText { ids: context.iter().copied().chain(rest).collect(), from: context.len() }
        };
        counts.iter().enumerate().map(choice).collect()
    };
    shapes.iter().enumerate().map(item).collect()
}

fn scoring(sequences: usize) -> EngineOptions {
    EngineOptions { sequences, context: Some(256), sizes: StepSizes::Listed, ..exact() }
}

/// The same numbers as each item alone, with far fewer tokens.
fn shares(engine: &mut Engine, name: &str) {
    let items = after_examples(engine.sizes().vocab_size);
    let mut alone = Vec::new();
    let mut all_tokens = 0;
    for item in &items {
        let mut keep = |_: usize, found: &[Likelihood]| {
            alone.push(found.to_vec());
            ControlFlow::Continue(())
        };
        all_tokens += block_on(engine.likelihoods(std::slice::from_ref(item), &mut keep)).unwrap();
    }
    let mut together = vec![Vec::new(); items.len()];
    let mut keep = |item: usize, found: &[Likelihood]| {
        together[item] = found.to_vec();
        ControlFlow::Continue(())
    };
    let tokens = block_on(engine.likelihoods(&items, &mut keep)).unwrap();
    // Where a window begins decides how the kernels of a GPU group the keys.
    let within = if engine.cpu().is_none() && ["gemma3_text", "mistral_swa"].contains(&name) { 1e-5 } else { 0.0 };
    for (found, expected) in together.iter().flatten().zip(alone.iter().flatten()) {
        let distance = (found.sum - expected.sum).abs();
        assert!(distance <= within * expected.sum.abs(), "{name}: {found:?}, alone {expected:?}");
        assert_eq!(found.greedy, expected.greedy, "{name}");
    }
    if ["lfm2", "falcon_h1"].contains(&name) {
        assert_eq!(tokens, all_tokens, "{name}: a recurrent state has no way back");
    } else {
        // The examples once, one token before each question's own ones at most, and a question without examples.
        let own: usize = items.iter().map(|item| computed_alone(item) - item[0].from).sum();
        let questions: usize = [20, 9, 31, 12, 20, 45, 25, 3, 5, 17, 1, 33].iter().sum();
        assert!(tokens <= 130 + questions + own + items.len(), "{name}: {tokens} of {all_tokens} tokens");
        assert!(2 * tokens < all_tokens, "{name}: {tokens} of {all_tokens} tokens");
    }
}

/// Tokens that an item takes by itself: its context, and of each choice all but the last, with the one before.
fn computed_alone(item: &[ScoredText]) -> usize {
    let longer = item.iter().filter(|text| text.ids.len() > text.from + 1);
    item[0].from + longer.map(|text| text.ids.len() - text.from).sum::<usize>()
}

#[test]
fn examples_before_questions_are_computed_once() {
    let gpu = gpu(GpuOptions::default());
    for name in ["llama3_gqa", "gemma3_text", "mistral_swa", "jais", "lfm2"] {
        shares(&mut engine(name, &gpu, scoring(4)), name);
    }
    for name in ["llama3_gqa", "gemma2_softcap", "mistral_swa", "falcon_h1"] {
        shares(&mut on_cpu(name, scoring(4)), name);
    }
}

/// What a server computes for each text as a prompt of its own.
fn as_prompts(engine: &mut Engine, items: &[Vec<ScoredText>]) -> Vec<Vec<Likelihood>> {
    let of = |item: &Vec<ScoredText>| {
        let prompts: Vec<&[u32]> = item.iter().map(|text| text.ids.as_slice()).collect();
        let scores = block_on(engine.score_prompts(&prompts, 1)).unwrap();
        let sum = |(text, scores): (&ScoredText, &Vec<bayan_generate::TokenScore>)| {
            let ends = &scores[text.from - 1..];
            let sum = ends.iter().map(|score| f64::from(score.logprob)).sum();
            Likelihood { sum, greedy: ends.iter().all(|score| score.top[0].1 <= score.logprob) }
        };
        item.iter().zip(&scores).map(sum).collect()
    };
    items.iter().map(of).collect()
}

fn has_the_bits_of_prompts(what: &str, mut local: Engine, mut server: Engine, items: usize) {
    let mut all = after_examples(local.sizes().vocab_size);
    all.truncate(items);
    assert_eq!(scored(&mut local, &all), as_prompts(&mut server, &all), "{what}");
}

#[test]
fn items_have_the_bits_of_scored_prompts() {
    for (name, format, cache) in [
        ("llama3_gqa", "f32", CacheFormat::F32),
        ("mistral_swa", "q8_0", CacheFormat::F16),
        ("gemma2_softcap", "q4_k", CacheFormat::Q8_0),
        ("jais", "f16", CacheFormat::F32),
    ] {
        let open = |sequences| on_cpu(name, EngineOptions { cache, policy: policy(format), ..scoring(sequences) });
        has_the_bits_of_prompts(&format!("{name} on the CPU"), open(6), open(3), 12);
    }
}

/// Also with the kernels that hardware runs.
#[test]
fn items_have_the_bits_of_scored_prompts_on_a_gpu() {
    for disable in ["", "software"] {
        let gpu = gpu(GpuOptions { disable: Disable::parse(disable).expect("a feature"), ..GpuOptions::default() });
        for (name, format, cache) in [("llama3_gqa", "f32", CacheFormat::F32), ("qwen2_bias", "q4_k", CacheFormat::F16)]
        {
            let open =
                |sequences| engine(name, &gpu, EngineOptions { cache, policy: policy(format), ..scoring(sequences) });
            has_the_bits_of_prompts(&format!("{name} without {disable:?}"), open(4), open(2), 4);
        }
    }
}

#[test]
fn items_that_cannot_be_scored_are_refused() {
    let gpu = gpu(GpuOptions::default());
    let options = EngineOptions { context: Some(32), sequences: 2, ..exact() };
    let mut engine = engine("llama3_gqa", &gpu, options);
    let mut refused = |ids: Vec<u32>, from: usize| {
        block_on(engine.likelihoods(&[vec![ScoredText { ids, from }]], &mut |_, _| ControlFlow::Continue(())))
            .expect_err("an error")
    };
    assert!(matches!(refused(vec![1, 2], 0), GenerateError::EmptyPrompt));
    assert!(matches!(refused(vec![1, 2], 2), GenerateError::EmptyPrompt));
    assert!(matches!(refused(vec![1, 99_999], 1), GenerateError::Token { id: 99_999, .. }));
    assert!(matches!(refused(vec![1; 34], 1), GenerateError::PromptTooLong { prompt: 34, context: 32 }));
}
