//! Log-likelihoods of continuations: the same as from the logits of each text alone, however items are packed.

use std::ops::ControlFlow;

use bayan_generate::{EngineOptions, GenerateError, Likelihood, ScoredText};
use bayan_gpu::{GpuOptions, block_on};

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
