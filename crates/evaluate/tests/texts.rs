//! DarijaBench's tasks that are answered in text, AraDiCE, and the metrics that compare texts, against what
//! lm-evaluation-harness, sacrebleu, rouge-score and `evaluate` make of the same rows and pairs.
//! `tests/fixtures/reference/make_evaluate_texts.py` made the references.

mod common;

use std::path::Path;

use bayan_evaluate::data::DataFolder;
use bayan_evaluate::metric::Score;
use bayan_evaluate::results::Finished;
use bayan_evaluate::run::{self, Backend, Local, OnItem, Prepared, Scoring, Settings};
use bayan_evaluate::task::{Kind, Metric};
use bayan_evaluate::{overlap, samples};
use bayan_generate::text::Tokenizer;
use bayan_generate::{Likelihood, ScoredText, TextPipeline};
use bayan_gpu::block_on;
use bayan_weights::DirectorySource;
use serde_json::Value;

use common::{fixtures, json, open_on_cpu, task, wait};

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().expect("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn prepare_in(root: &Path, name: &str, shots: usize) -> bayan_evaluate::Result<Prepared> {
    let task = task(name);
    let settings = Settings { shots: Some(shots), ..Default::default() };
    run::prepare(&task, &mut DataFolder::open(root).expect("the data"), &settings)
}

fn prepared(run: &Value) -> Prepared {
    let (name, shots) = (text(&run["task"]), run["shots"].as_u64().unwrap_or(0) as usize);
    prepare_in(&fixtures().join("evaluate/data"), name, shots).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn close(own: f64, expected: &Value, most: f64, what: &str) {
    let expected = expected.as_f64().unwrap_or_else(|| panic!("{what} of the reference"));
    assert!((own - expected).abs() <= most, "{what}: {own}, expected {expected}");
}

#[test]
fn pairs_score_as_in_python() {
    let reference = json("overlap.json");
    let mut compared = 0;
    for (at, item) in list(&reference["items"]).iter().enumerate() {
        for (name, expected) in item["scores"].as_object().expect("scores") {
            let metric = Metric::by_name(name).expect(name);
            // lm-evaluation-harness gives this one metric answer and reference the other way round.
            let (answer, reference) = match metric {
                Metric::RougeLsum => (text(&item["reference"]), text(&item["answer"])),
                _ => (text(&item["answer"]), text(&item["reference"])),
            };
            let own = overlap::score(metric, &overlap::counts(metric, answer, reference));
            close(own, expected, 1e-9, &format!("{name} of pair {at}"));
            compared += 1;
        }
    }
    assert!(compared >= 7 * 90, "{compared}");
    assert!(overlap::counts(Metric::Acc, "a", "a").is_empty());
}

#[test]
fn totals_score_as_in_the_harness() {
    let reference = json("overlap.json");
    for total in list(&reference["totals"]) {
        let [from, to] = ["from", "to"].map(|end| total[end].as_u64().expect("a number") as usize);
        let items = &list(&reference["items"])[from..to];
        for (name, expected) in total["scores"].as_object().expect("scores") {
            let Some(metric) = Metric::by_name(name) else { continue };
            let counts =
                items.iter().map(|item| overlap::counts(metric, text(&item["answer"]), text(&item["reference"])));
            let counts: Vec<Vec<f64>> = counts.collect();
            let Score { value, error, .. } =
                overlap::total(metric, &counts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            close(value, expected, 1e-9, &format!("{name} of {from} to {to}"));
            match &total["scores"][format!("{name}_stderr")] {
                Value::Null => assert_eq!(error, None, "{name}"),
                expected => close(error.expect("an error"), expected, 1e-9, &format!("error of {name}")),
            }
        }
    }
}

/// A model that has its answers already.
struct Prompted<'a> {
    tokenizer: &'a Tokenizer,
    answers: Vec<String>,
}

impl Backend for Prompted<'_> {
    fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer
    }

    fn context(&self) -> usize {
        4096
    }

    fn score(&mut self, _: &[Vec<ScoredText>], _: OnItem<'_>) -> bayan_evaluate::Result<Vec<Vec<Likelihood>>> {
        panic!("these tasks have no choices")
    }

    fn generate(
        &mut self,
        _: &[Vec<u32>],
        _: usize,
        stop: &[&str],
        _: OnItem<'_>,
    ) -> bayan_evaluate::Result<Vec<String>> {
        // What follows a text to stop at is not counted.
        Ok(self.answers.iter().zip(stop.iter().cycle()).map(|(answer, stop)| format!("{answer}{stop} words")).collect())
    }
}

fn tokenizer() -> TextPipeline {
    let source = DirectorySource::new(fixtures().join("models/llama2_mha")).expect("a model");
    block_on(TextPipeline::open(&source, None)).expect("a tokenizer")
}

#[test]
fn written_answers_are_asked_for_and_counted_as_in_lm_eval() {
    let (reference, pipeline) = (json("darija_texts.json"), tokenizer());
    let runs = list(&reference["runs"]);
    for run in runs {
        let own = prepared(run);
        let items = list(&run["items"]);
        let what = format!("{}, {} examples", run["task"], run["shots"]);
        assert_eq!(own.items.len(), items.len(), "{what}");
        for (item, expected) in own.items.iter().zip(items) {
            assert_eq!(item.prompt, text(&expected["prompt"]), "{what}");
            assert_eq!(item.question.answer, text(&expected["reference"]), "{what}");
        }
        let Kind::Generate { tokens, stop, .. } = own.task.kind else { panic!("{what}: a text") };
        assert_eq!((Value::from(stop), Value::from(tokens)), (run["until"].clone(), run["tokens"].clone()), "{what}");
        let answers = items.iter().map(|item| text(&item["raw"]).to_owned()).collect();
        let mut backend = Prompted { tokenizer: &pipeline.tokenizer, answers };
        let lines = run::lines(&mut backend, &own, &own.items, &mut || ()).expect("lines");
        for (line, expected) in lines.iter().zip(items) {
            let line: Value = serde_json::from_str(line).expect("a line");
            assert_eq!(line["filtered_resps"][0], expected["answer"], "{what}");
            assert_eq!(line["target"], expected["reference"], "{what}");
        }
        let metrics = run::metric_names(&own.task);
        let samples = lines.iter().map(|line| samples::parse(line, &metrics).expect("a sample")).collect();
        let results = run["results"].as_object().expect("results");
        assert_eq!(results.len(), 2 * metrics.len(), "{what}: {results:?}");
        for (metric, score) in (Finished { prepared: &own, samples }).scores() {
            let name = metric.name();
            close(score.value, &results[&format!("{name},STRIP_ANSWER")], 1e-9, &format!("{name} of {what}"));
            match &results[&format!("{name}_stderr,STRIP_ANSWER")] {
                Value::String(none) => assert_eq!((none.as_str(), score.error), ("N/A", None), "{name}"),
                error => close(score.error.expect("an error"), error, 1e-9, &format!("error of {name} of {what}")),
            }
        }
    }
    assert!(runs.len() >= 2 * 24, "{}", runs.len());
}

#[test]
fn generated_answers_are_those_of_lm_eval_with_transformers() {
    let (reference, mut model) = (json("darija_texts.json"), open_on_cpu("llama2_mha"));
    let stop = model.stop.clone();
    let mut compared = 0;
    for run in list(&reference["generated"]) {
        let mut own = prepared(run);
        let Kind::Generate { tokens, .. } = &mut own.task.kind else { panic!("a text") };
        *tokens = run["tokens"].as_u64().expect("a number") as usize;
        let mut backend = Local { model: &mut model, scoring: Scoring::Shared, wait: &wait };
        let lines = run::lines(&mut backend, &own, &own.items, &mut || ()).expect("lines");
        for (line, expected) in lines.iter().zip(list(&run["answers"])) {
            let line: Value = serde_json::from_str(line).expect("a line");
            assert_eq!(line["filtered_resps"][0], *expected, "{}, item {}", run["task"], line["doc_id"]);
            compared += 1;
        }
    }
    assert!(compared >= 7, "{compared}");
    assert_eq!(model.stop, stop, "tokens to stop at are those of the task only while it is answered");
}

#[test]
fn aradice_is_asked_and_scored_as_in_lm_eval() {
    let (reference, mut model) = (json("aradice.json"), open_on_cpu("llama2_mha"));
    let mut compared = 0;
    for run in list(&reference) {
        let own = prepared(run);
        let what = format!("{}, {} examples", run["task"], run["shots"]);
        let items = list(&run["items"]);
        assert_eq!(own.items.len(), items.len(), "{what}");
        for (item, expected) in own.items.iter().zip(items) {
            assert_eq!(serde_json::json!(item.pairs(own.task.delimiter)), expected["pairs"], "{what}");
        }
        let mut backend = Local { model: &mut model, scoring: Scoring::Shared, wait: &wait };
        let lines = run::lines(&mut backend, &own, &own.items, &mut || ()).expect("lines");
        for (line, expected) in lines.iter().zip(items) {
            let line: Value = serde_json::from_str(line).expect("a line");
            for (own, expected) in list(&line["filtered_resps"]).iter().zip(list(&expected["lls"])) {
                close(own[0].as_f64().expect("a sum"), expected, 1e-3, &what);
                compared += 1;
            }
            assert_eq!((&line["acc"], &line["acc_norm"]), (&expected["acc"], &expected["acc_norm"]), "{what}");
        }
        let metrics = run::metric_names(&own.task);
        let samples = lines.iter().map(|line| samples::parse(line, &metrics).expect("a sample")).collect();
        for (metric, score) in (Finished { prepared: &own, samples }).scores() {
            let name = metric.name();
            close(score.value, &run["results"][format!("{name},none")], 1e-9, &format!("{name} of {what}"));
            match &run["results"][format!("{name}_stderr,none")] {
                Value::String(none) => assert_eq!((none.as_str(), score.error), ("N/A", None), "{name}"),
                error => close(score.error.expect("an error"), error, 1e-9, &format!("error of {name} of {what}")),
            }
        }
    }
    assert!(compared > 150, "{compared}");
}

#[test]
fn bad_rows_are_refused_with_file_and_row() {
    let root = tempfile::tempdir().expect("a folder");
    let error = |task: &str, file: &str, rows: &str| {
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, rows).expect("a file");
        prepare_in(root.path(), task, 0).expect_err(task).to_string()
    };
    let message = |source: &str, target: &str| {
        let messages = serde_json::json!([{"content": source}, {"content": target}]);
        format!("{}\n", serde_json::json!({"messages": messages, "direction": "dr_en"}))
    };
    let darija = |task: &str, split: &str, rows: &str| error(task, &format!("DarijaBench/data/{split}.jsonl"), rows);
    let good = message("س", "answer");
    let found = darija("translation_dr_en_seed", "seed", &(good.clone() + &message("س", "  ")));
    assert!(found.contains("seed.jsonl") && found.contains('2') && found.contains("number 2"), "{found}");
    let found = darija("translation_all_seed", "seed", &(good.clone() + "{\"direction\": \"dr_en\"}\n"));
    assert!(found.contains("seed.jsonl") && found.contains("`content`"), "{found}");
    let found = darija("translation_dr_en_seed", "seed", &good.replace("direction", "way"));
    assert!(found.contains("direction") && found.contains("way"), "{found}");
    let found = darija("translation_en_dr_seed", "seed", &good);
    assert!(found.contains("one row or more"), "{found}");
    let found = darija("darija_summarization_task", "marsum", &good.replace("answer\"}]", "answer\"]"));
    assert!(found.contains("marsum.jsonl"), "{found}");
    let wino = |row: &str| error("AraDiCE_winogrande_egy", "AraDiCE-WinoGrande/Winogrande-egy/test.jsonl", row);
    let found = wino(r#"{"sentence": "بلا فراغ", "option1": "أ", "option2": "ب", "answer": "1"}"#);
    assert!(found.contains("test.jsonl") && found.contains("a gap `_`"), "{found}");
    let found = wino(r#"{"sentence": "في _ هنا", "option1": "أ", "option2": "", "answer": "1"}"#);
    assert!(found.contains("option2"), "{found}");
    let found = wino(r#"{"sentence": "في _ هنا", "option1": "أ", "option2": "ب", "answer": "3"}"#);
    assert!(found.contains("one of 1, 2"), "{found}");
    let exam = |row: &str| {
        error("AraDiCE_ArabicMMLU_high_stem_physics_egy", "AraDICE-ArabicMMLU-egy/high_stem_physics/test.jsonl", row)
    };
    let row = r#"{"Subject": "Law", "Level": null, "Country": null, "context": null, "question": "س",
        "options": {"A": "أ", "B": "ب", "C": null}, "Answer Key": "B"}"#;
    let row = row.replace('\n', "");
    assert!(exam(&row.replace("Law", "Magic")).contains("got \"Magic\""));
    assert!(exam(&row.replace(": \"B\"", ": \"C\"")).contains("one of 2 choices"));
    assert!(exam(&row.replace("options", "choices")).contains("options A to E"));
    let truth = r#"{"question": "س", "mc1_targets": {"labels": [1]}}"#;
    let found = error("AraDiCE_truthfulqa_mc1_lev", "AraDiCE-TruthfulQA/TruthfulQA-lev/test.jsonl", truth);
    assert!(found.contains("`choices`"), "{found}");
    let book = r#"{"question": {"stem": "س", "choices": [{"text": "أ", "label": "A"}]}, "answerKey": "B"}"#;
    let found = error("AraDiCE_openbookqa_msa", "AraDiCE-OpenBookQA/OBQA-msa/test.jsonl", book);
    assert!(found.contains("one of A, got \"B\""), "{found}");
}
