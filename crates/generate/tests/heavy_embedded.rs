//! The embedded model's held-out score through Bayan's own kernels, in the quantized form that is shipped: greedy
//! answers to questions that are not in its training text, checked for the facts they must contain.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::rc::Rc;

use bayan_generate::{Generation, Model, ModelOptions};
use bayan_gpu::{Gpu, GpuOptions, block_on};
use bayan_weights::{Checkpoint, MemorySource};
use serde_json::Value;

/// Removes tashkeel and tatweel, and unifies the alefs, yas and ta marbutas that people interchange.
fn normalised(text: &str) -> String {
    let kept = text.chars().filter(|c| !('\u{064b}'..='\u{0652}').contains(c) && !matches!(c, '\u{0670}' | '\u{0640}'));
    kept.map(|c| match c {
        'أ' | 'إ' | 'آ' | 'ٱ' => 'ا',
        'ى' => 'ي',
        'ة' => 'ه',
        other => other,
    })
    .collect()
}

fn questions() -> Vec<(String, Value)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../embedded/heldout");
    let read = |part: &str| std::fs::read_to_string(folder.join(format!("{part}.jsonl"))).unwrap();
    let parts = ["a", "b", "c"].map(|part| (part, read(part)));
    let parsed = parts
        .iter()
        .flat_map(|(part, text)| text.lines().map(|line| (part.to_string(), serde_json::from_str(line).unwrap())));
    parsed.collect()
}

#[test]
fn the_embedded_model_answers_four_of_five_held_out_questions() {
    let mut source = MemorySource::new();
    for (name, bytes) in bayan_embedded::files() {
        source.insert(*name, *bytes);
    }
    let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    let checkpoint = block_on(Checkpoint::open(Rc::new(source))).unwrap();
    let mut model = block_on(Model::open(&checkpoint, &gpu, &ModelOptions::default(), &mut |_, _| {})).unwrap();
    let generation = Generation { max_tokens: Some(120), ..Default::default() };
    let mut scores: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (part, item) in questions() {
        let messages = item["messages"].as_array().unwrap();
        let answer = block_on(model.chat(messages, &generation, &mut |_| ControlFlow::Continue(()))).unwrap().text;
        let found = normalised(&answer);
        let facts = item["facts"].as_array().unwrap();
        let right = facts.iter().all(|fact| {
            fact.as_array().unwrap().iter().any(|word| found.contains(&normalised(word.as_str().unwrap())))
        });
        for key in [format!("{part}/{}", item["topic"].as_str().unwrap_or("")), "all".to_string()] {
            let score = scores.entry(key).or_default();
            score.0 += usize::from(right);
            score.1 += 1;
        }
        if !right {
            println!("wrong: {} -> {answer}", messages.last().unwrap()["content"]);
        }
    }
    for (topic, (right, asked)) in &scores {
        println!("{topic}: {right} of {asked}");
    }
    let (right, asked) = scores["all"];
    assert!(asked >= 150, "{asked} questions");
    assert!(right * 100 >= asked * 80, "{right} of {asked} are right");
}
