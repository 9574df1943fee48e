//! The embedded model's held-out score through Bayan's own kernels, in the quantized form that is shipped: greedy
//! answers to questions that are not in its training text, checked for the facts they must contain.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::rc::Rc;

use bayan_generate::{Cpu, Generation, Model, ModelOptions};
use bayan_gpu::{Gpu, GpuOptions, block_on};
use bayan_weights::{Checkpoint, MemorySource};
use serde_json::{Value, json};

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

/// A folder of the embedded model's own files.
fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../embedded").join(name)
}

fn questions() -> Vec<(String, Value)> {
    let folder = folder("heldout");
    let read = |part: &str| std::fs::read_to_string(folder.join(format!("{part}.jsonl"))).unwrap();
    let parts = ["a", "b", "c"].map(|part| (part, read(part)));
    let parsed = parts
        .iter()
        .flat_map(|(part, text)| text.lines().map(|line| (part.to_string(), serde_json::from_str(line).unwrap())));
    parsed.collect()
}

fn checkpoint() -> Checkpoint {
    let mut source = MemorySource::new();
    for (name, bytes) in bayan_embedded::files() {
        source.insert(*name, *bytes);
    }
    block_on(Checkpoint::open(Rc::new(source))).unwrap()
}

fn embedded() -> Model {
    let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    block_on(Model::open(&checkpoint(), &gpu, &ModelOptions::default(), &mut |_, _| {})).unwrap()
}

/// The model on the CPU, as it is opened by default where there is no GPU.
fn embedded_on_cpu() -> Model {
    let cpu = Cpu::open(None).expect("threads");
    block_on(Model::open_on_cpu(&checkpoint(), &cpu, &ModelOptions::default(), &mut |_, _| {})).unwrap()
}

/// The questions and answers of the README's conversation: lines that begin with `> `, and the lines after each.
fn readme_conversation() -> Vec<(String, String)> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(file).unwrap();
    let block = readme.split("```text\n> ").nth(1).and_then(|rest| rest.split("\n```").next()).expect("a conversation");
    let turns = block.split("\n> ").map(|turn| turn.split_once('\n').expect("an answer below each question"));
    turns.map(|(question, answer)| (question.to_string(), answer.to_string())).collect()
}

#[test]
fn the_readme_shows_what_the_embedded_model_answers() {
    replay_the_readme(embedded());
}

#[test]
fn the_readme_shows_what_it_answers_on_the_cpu() {
    replay_the_readme(embedded_on_cpu());
}

fn replay_the_readme(mut model: Model) {
    let generation = Generation { max_tokens: Some(192), ..Default::default() };
    let turns = readme_conversation();
    assert!(turns.len() >= 4, "{} questions", turns.len());
    let mut messages = Vec::new();
    for (question, shown) in turns {
        messages.push(json!({"role": "user", "content": question}));
        let answer = block_on(model.chat(&messages, &generation, &mut |_| ControlFlow::Continue(()))).unwrap().text;
        assert_eq!(answer, shown, "{question}");
        messages.push(json!({"role": "assistant", "content": answer}));
    }
}

/// What the page suggests for the embedded model, in every order within one conversation.
#[test]
fn the_suggestions_of_the_page_are_answered_in_any_order() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../web/src/strings/ar.ts");
    let strings = std::fs::read_to_string(file).unwrap();
    let list = strings.split("smallSuggestions: [").nth(1).and_then(|rest| rest.split(']').next()).expect("a list");
    let suggested: Vec<&str> =
        list.split("text: '").skip(1).map(|rest| rest.split('\'').next().expect("a text")).collect();
    let answers = [
        ("السلام عليكم", "وعليكم السلام"),
        ("ما عاصمة المغرب؟", "الرباط"),
        ("كيف أصنع الشاي؟", "لعمل الشاي"),
        ("ما جمع كتاب؟", "كتب"),
    ];
    assert_eq!(suggested, answers.map(|(question, _)| question), "the page's suggestions");
    let mut model = embedded_on_cpu();
    let generation = Generation { max_tokens: Some(120), ..Default::default() };
    let orders = (0..256).map(|number| [number % 4, number / 4 % 4, number / 16 % 4, number / 64]);
    let mut asked = 0;
    for order in orders.filter(|order| HashSet::from(*order).len() == 4) {
        let mut messages = Vec::new();
        for (question, fact) in order.map(|index: usize| answers[index]) {
            messages.push(json!({"role": "user", "content": question}));
            let answer = block_on(model.chat(&messages, &generation, &mut |_| ControlFlow::Continue(()))).unwrap().text;
            assert!(answer.contains(fact), "{order:?}: {question} -> {answer}");
            messages.push(json!({"role": "assistant", "content": answer}));
            asked += 1;
        }
    }
    assert_eq!(asked, 24 * 4);
}

#[test]
fn the_embedded_model_answers_four_of_five_held_out_questions() {
    ask_held_out_questions(embedded());
}

#[test]
fn it_answers_as_many_on_the_cpu() {
    ask_held_out_questions(embedded_on_cpu());
}

fn ask_held_out_questions(mut model: Model) {
    let generation = Generation { max_tokens: Some(120), ..Default::default() };
    let mut scores: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (part, item) in questions() {
        let messages = item["messages"].as_array().unwrap();
        let answer = block_on(model.chat(messages, &generation, &mut |_| ControlFlow::Continue(()))).unwrap().text;
        let right = has_facts(&answer, &item["facts"]);
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

/// Whether an answer has one of the alternatives of every fact.
fn has_facts(answer: &str, facts: &Value) -> bool {
    let found = normalised(answer);
    facts.as_array().unwrap().iter().all(|alternatives| {
        alternatives.as_array().unwrap().iter().any(|word| found.contains(&normalised(word.as_str().unwrap())))
    })
}

/// Conversations of two to four messages: one is right when all its answers are, each after the model's own ones.
#[test]
fn it_holds_four_of_five_conversations() {
    let text = std::fs::read_to_string(folder("heldout/conversations.jsonl")).unwrap();
    let conversations: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let trained = trained_conversations();
    assert!(trained.len() > 4000, "{} conversations in the training text", trained.len());
    let mut model = embedded_on_cpu();
    let generation = Generation { max_tokens: Some(120), ..Default::default() };
    let mut right = 0;
    for conversation in &conversations {
        let turns = conversation["turns"].as_array().unwrap();
        assert!((2..=4).contains(&turns.len()), "{conversation}");
        let asked: Vec<String> = turns.iter().map(|turn| normalised(turn["content"].as_str().unwrap())).collect();
        assert!(!trained.contains(&asked), "in the training text: {conversation}");
        let mut messages = Vec::new();
        let all_right = turns.iter().all(|turn| {
            messages.push(json!({"role": "user", "content": turn["content"]}));
            let answer = block_on(model.chat(&messages, &generation, &mut |_| ControlFlow::Continue(()))).unwrap().text;
            messages.push(json!({"role": "assistant", "content": answer}));
            let right = has_facts(&answer, &turn["facts"]);
            if !right {
                println!("wrong after {} messages: {} -> {answer}", messages.len() - 2, turn["content"]);
            }
            right
        });
        right += usize::from(all_right);
    }
    let held = conversations.len();
    println!("conversations: {right} of {held}");
    assert!(held >= 60, "{held} conversations");
    assert!(right * 100 >= held * 80, "{right} of {held} are right");
}

/// The messages of the person in each conversation of the training text.
fn trained_conversations() -> HashSet<Vec<String>> {
    let mut all = HashSet::new();
    for file in std::fs::read_dir(folder("corpus")).unwrap() {
        for line in std::fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            let conversation: Value = serde_json::from_str(line).unwrap();
            let messages = conversation["messages"].as_array().unwrap().iter();
            let asked = messages.filter(|message| message["role"] == "user");
            all.insert(asked.map(|message| normalised(message["content"].as_str().unwrap())).collect());
        }
    }
    all
}
