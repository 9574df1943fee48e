//! Prompts against those of the harnesses' own code: shuffled choices, chat templates, and the first leaderboard.
//! `tests/fixtures/reference/make_evaluate_more.py` made the references.

mod common;

use std::rc::Rc;

use bayan_evaluate::data::DataFolder;
use bayan_evaluate::prompt::Around;
use bayan_evaluate::run::{self, Prepared, Settings};
use bayan_generate::TextPipeline;
use bayan_gpu::block_on;
use bayan_weights::DirectorySource;
use serde_json::Value;

use common::{fixtures, json, task};

fn prepare(run: &Value, around: Around) -> bayan_evaluate::Result<Prepared> {
    let mut folder = DataFolder::open(&fixtures().join("evaluate/data")).expect("the data");
    let task = task(run["task"].as_str().expect("a name"));
    let shots = Some(run["shots"].as_u64().expect("a number") as usize);
    run::prepare(&task, &mut folder, &Settings { shots, around, ..Default::default() })
}

/// Compares prompts, continuations and right answers with those of a run, and returns how many there are.
fn compare(run: &Value, around: Around) -> usize {
    let own = prepare(run, around).unwrap_or_else(|error| panic!("{}: {error}", run["task"]));
    let expected = run["items"].as_array().expect("items");
    assert_eq!(own.items.len(), expected.len(), "{}", run["task"]);
    for (item, expected) in own.items.iter().zip(expected) {
        let what = format!("{}, {} examples, {}", run["task"], run["shots"], item.number);
        assert_eq!(item.prompt, expected["prompt"], "{what}");
        let choices = item.question.choices.iter().map(|choice| format!("{}{choice}", own.task.delimiter));
        assert_eq!(Value::from_iter(choices), expected["continuations"], "{what}");
        if let Some(gold) = expected["gold"].as_u64() {
            assert_eq!(item.question.gold, Some(gold as usize), "{what}");
        }
    }
    expected.len()
}

fn compare_all(reference: &str) -> usize {
    json(reference).as_array().expect("runs").iter().map(|run| compare(run, Around::default())).sum()
}

#[test]
fn sciq_is_shuffled_as_the_harnesses_shuffle_it() {
    assert_eq!(compare_all("sciq.json"), 4 * 12);
}

#[test]
fn sentiment_is_asked_as_lm_eval_asks() {
    assert_eq!(compare_all("darija.json"), 2 * 5);
}

#[test]
fn prompts_of_the_first_leaderboard_are_its_own() {
    assert!(compare_all("oall_v1.json") > 40);
}

#[test]
fn shuffled_questions_need_the_split_with_examples() {
    let root = tempfile::tempdir().expect("a folder");
    let own = root.path().join("AlGhafa-Arabic-LLM-Benchmark-Translated/sciq_ar");
    std::fs::create_dir_all(&own).expect("a folder");
    let name = "evaluate/data/AlGhafa-Arabic-LLM-Benchmark-Translated/sciq_ar/test.jsonl";
    std::fs::copy(fixtures().join(name), own.join("test.jsonl")).expect("a file");
    let task = task("lm-eval/arabic_mt_sciq");
    let mut folder = DataFolder::open(root.path()).expect("the data");
    let error = run::prepare(&task, &mut folder, &Settings::default()).expect_err("no examples").to_string();
    assert!(error.contains("split `validation`"), "{error}");
}

fn around(name: &str, run: &Value) -> Around {
    let source = DirectorySource::new(fixtures().join("models").join(name)).expect("a model");
    let text = block_on(TextPipeline::open(&source, None)).expect("a tokenizer");
    Around {
        template: text.template.filter(|_| run["template"] == true).map(Rc::new),
        one_turn: run["multiturn"] == false,
        system: run["system"].as_str().map(str::to_owned),
    }
}

#[test]
fn chat_prompts_are_those_of_the_harnesses() {
    let mut compared = 0;
    for (name, runs) in json("chat.json").as_object().expect("models") {
        for run in runs.as_array().expect("runs") {
            let mut around = around(name, run);
            // Without a template there are no turns.
            around.one_turn &= around.template.is_some();
            compared += compare(run, around);
        }
    }
    assert!(compared > 150, "{compared}");
}

#[test]
fn faults_in_chat_prompts_are_found() {
    let reference = json("chat.json");
    let runs = reference["llama2_mha"].as_array().expect("runs");
    let find = |system: bool| {
        let wanted = |run: &&Value| {
            run["task"] == "lm-eval/aexams_Biology" && run["template"] == true && run["shots"] == 2 - u64::from(!system)
        };
        runs.iter().find(wanted).expect("a run")
    };
    let run = find(true);
    let sound = around("llama2_mha", run);
    let differs = |around: Around| {
        let own = prepare(run, around).expect("prompts");
        own.items.iter().zip(run["items"].as_array().expect("items")).any(|(own, item)| own.prompt != item["prompt"])
    };
    assert!(!differs(sound.clone()));
    assert!(differs(Around { one_turn: false, ..sound.clone() }), "examples as turns");
    assert!(differs(Around { system: None, ..sound.clone() }), "no system instruction");
    assert!(differs(Around { template: None, one_turn: false, ..sound }), "no template");
}

#[test]
fn harnesses_without_chat_prompts_refuse_them() {
    let error = |task: &str, around: Around| {
        let run = serde_json::json!({"task": task, "shots": 0});
        prepare(&run, around).expect_err("refused").to_string()
    };
    let reference = json("chat.json");
    let chat = around("qwen2_bias", &reference["qwen2_bias"][0]);
    assert!(error("acegpt/exams:Physics", chat.clone()).contains("_chat"));
    assert!(error("oall-v1/acva:Algeria", chat.clone()).contains("plain prompts"));
    let one_turn = Around { one_turn: true, ..chat };
    assert!(error("lighteval/acva:Algeria", one_turn).contains("--fewshot-as-multiturn"));
    let system = Around { system: Some("أجب".into()), ..Around::default() };
    assert!(error("acegpt/exams:Physics", system).contains("--system-instruction"));
}
