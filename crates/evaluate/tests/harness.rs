//! Prompts, log-likelihoods, picks and totals against those of lm-evaluation-harness's and lighteval's own code, on small
//! models with random weights. `tests/fixtures/reference/make_evaluate.py` made them.

mod common;

use std::path::Path;
use std::rc::Rc;

use bayan_evaluate::data::DataFolder;
use bayan_evaluate::metric::{first_largest, mean};
use bayan_evaluate::prompt::Around;
use bayan_evaluate::results::{Finished, group_scores};
use bayan_evaluate::run::{self, Backend, Local, OnItem, Output, Prepared, Scoring, Settings};
use bayan_evaluate::samples::{self, Sample};
use bayan_evaluate::suites::select;
use bayan_evaluate::task::{Question, Task};
use bayan_evaluate::training::{Benchmarks, Training};
use bayan_generate::text::Tokenizer;
use bayan_generate::{Likelihood, Model, ScoredText, TextPipeline};
use bayan_gpu::{Disable, Gpu, GpuOptions, block_on};
use bayan_models::LoadOptions;
use bayan_train::engine::{Trainer, TrainerOptions, new_adapter};
use bayan_train::{Recipe, Rng};
use bayan_weights::{Checkpoint, DirectorySource};
use serde_json::Value;

use common::{checkpoint, fixtures, json, open_on_cpu, task, wait};

fn data() -> DataFolder {
    DataFolder::open(&fixtures().join("evaluate/data")).expect("the data")
}

fn prepared(name: &str, shots: usize) -> Prepared {
    let settings = Settings { shots: Some(shots), ..Default::default() };
    run::prepare(&task(name), &mut data(), &settings).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Name and number of examples of each run of a reference.
fn runs(reference: &Value) -> impl Iterator<Item = (&str, usize, &Vec<Value>)> {
    reference.as_array().expect("runs").iter().map(|run| {
        let shots = run["shots"].as_u64().expect("a number") as usize;
        (run["task"].as_str().expect("a name"), shots, run["items"].as_array().expect("items"))
    })
}

#[test]
fn prompts_are_those_of_the_harnesses() {
    let reference = json("prompts.json");
    let mut compared = 0;
    for (name, shots, items) in runs(&reference) {
        let own = prepared(name, shots);
        assert_eq!(own.items.len(), items.len(), "{name}");
        for (item, expected) in own.items.iter().zip(items) {
            assert_eq!(item.prompt, expected["prompt"], "{name}, {shots} examples, item {}", item.number);
            let continuations: Vec<String> =
                item.question.choices.iter().map(|choice| format!("{}{choice}", own.task.delimiter)).collect();
            assert_eq!(Value::from(continuations), expected["continuations"], "{name}");
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn random_examples_are_drawn_as_the_harness_draws_them() {
    let root = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(root.path().join("copa_ar")).expect("a folder");
    std::fs::create_dir_all(root.path().join("EgyHellaSwag/data")).expect("a folder");
    let copa = |n: usize| format!("{{\"query\": \"س{n}\", \"sol1\": \"أ{n}\", \"sol2\": \"ب{n}\", \"label\": 1}}\n");
    std::fs::write(root.path().join("copa_ar/test.jsonl"), (0..6).map(copa).collect::<String>()).expect("a file");
    let swag = |n: usize| {
        let row = serde_json::json!({"activity_label": "نشاط", "ctx": format!("س{n}"), "endings": ["أ", "ب", "ج", "د"],
            "label": "2"});
        format!("{row}\n")
    };
    // The questions are among the examples here, so that each is left out of its own.
    for split in ["train", "validation"] {
        let path = root.path().join(format!("EgyHellaSwag/data/{split}.jsonl"));
        std::fs::write(path, (0..6).map(swag).collect::<String>()).expect("a file");
    }
    let prompts = |name: &str, limit: usize| {
        let settings = Settings { shots: Some(2), limit: Some(limit), ..Default::default() };
        let mut folder = DataFolder::open(root.path()).expect("the data");
        let own = run::prepare(&task(name), &mut folder, &settings).unwrap_or_else(|error| panic!("{name}: {error}"));
        own.items.into_iter().map(|item| item.prompt).collect::<Vec<_>>()
    };
    // Numbers that the harness's own sampler drew with its seed from six rows, for the first four questions.
    let example = |n: usize| format!("السؤال: س{n}\nالجواب: ب{n}\n\n");
    for (at, (prompt, drawn)) in prompts("copa_ar", 4).iter().zip([[3, 0], [0, 5], [4, 0], [5, 0]]).enumerate() {
        let expected = drawn.map(example).concat() + &format!("السؤال: س{at}\nالجواب:");
        assert_eq!(*prompt, expected, "question {at}");
    }
    let example = |n: usize| format!("نشاط: س{n} ج\n\n");
    for (at, (prompt, drawn)) in prompts("egyhellaswag", 4).iter().zip([[3, 4], [0, 4], [5, 0], [2, 1]]).enumerate() {
        assert_eq!(*prompt, drawn.map(example).concat() + &format!("نشاط: س{at}"), "question {at}");
    }
}

/// A model on a GPU or the software device.
fn open(name: &str) -> Model {
    let (checkpoint, options) = checkpoint(name);
    let gpu: Gpu = block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    block_on(Model::open(&checkpoint, &gpu, &options, &mut |_, _| {})).unwrap()
}

/// What the reference has of an item.
struct Expected {
    sums: Vec<f64>,
    greedy: Option<Vec<bool>>,
    values: Vec<f64>,
}

fn expected(task: &Task, item: &Value) -> Expected {
    let numbers = |value: &Value| value.as_array().expect("numbers").iter().map(|n| n.as_f64().unwrap()).collect();
    let greedy = item["greedy"].as_array().map(|all| all.iter().map(|flag| flag.as_bool().unwrap()).collect());
    let values = task.metrics.iter().map(|metric| item[metric.name()].as_f64().expect("a value")).collect();
    Expected { sums: numbers(&item["lls"]), greedy, values }
}

/// Differences between lines of samples and the reference, if there are any.
fn differences(own: &Prepared, lines: &[String], items: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for (line, item) in lines.iter().zip(items) {
        let line: Value = serde_json::from_str(line).expect("a line");
        let Expected { sums, greedy, values } = expected(&own.task, item);
        let scored = line["filtered_resps"].as_array().expect("scores");
        let own_sums: Vec<f64> = scored.iter().map(|one| one[0].as_f64().expect("a number")).collect();
        let place = format!("{}, {} examples, item {}", own.task.full_name(), own.shots, line["doc_id"]);
        if own_sums.len() != sums.len() || own_sums.iter().zip(&sums).any(|(a, b)| (a - b).abs() > 1e-3) {
            found.push(format!("{place}: {own_sums:?}, expected {sums:?}"));
            continue;
        }
        for (one, expected) in scored.iter().zip(greedy.into_iter().flatten()) {
            if one[1] != expected {
                found.push(format!("{place}: greedy {}", one[1]));
            }
        }
        for (metric, value) in own.task.metrics.iter().zip(values) {
            if line[metric.name()] != value {
                found.push(format!("{place}: {} {}, expected {value}", metric.name(), line[metric.name()]));
            }
        }
    }
    found
}

fn all_lines(backend: &mut dyn Backend, own: &Prepared) -> Vec<String> {
    run::lines(backend, own, &own.items, &mut || ()).unwrap_or_else(|error| panic!("{}: {error}", own.task.full_name()))
}

/// Compares a model with its reference and returns how many items were compared.
fn compare(name: &str, model: &mut Model, keep: impl Fn(&str, usize) -> bool) -> usize {
    let reference = json(&format!("{name}.json"));
    let mut backend = Local { model, scoring: Scoring::Shared, wait: &wait };
    let mut compared = 0;
    for (task, shots, items) in runs(&reference["runs"]).filter(|(task, shots, _)| keep(task, *shots)) {
        let own = prepared(task, shots);
        let lines = all_lines(&mut backend, &own);
        let found = differences(&own, &lines, items);
        assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));
        compared += lines.len();
    }
    compared
}

#[test]
fn scores_of_a_model_with_bos_are_the_references() {
    let mut model = open_on_cpu("llama2_mha");
    assert!(compare("llama2_mha", &mut model, |_, _| true) > 120);
    // The same in the model's chat template.
    let reference = json("chat.json");
    let wanted = |run: &&Value| run["template"] == true && run["task"] == "lm-eval/aexams_Biology" && run["shots"] != 2;
    let runs: Vec<&Value> = reference["llama2_mha"].as_array().expect("runs").iter().filter(wanted).collect();
    assert_eq!(runs.len(), 2, "without and with an example");
    for run in runs {
        let template = Some(Rc::new(model.template.clone().expect("a template")));
        let system = run["system"].as_str().map(str::to_owned);
        let around = Around { template, system, one_turn: false };
        let settings = Settings { shots: Some(run["shots"].as_u64().unwrap() as usize), around, ..Default::default() };
        let own = run::prepare(&task("lm-eval/aexams_Biology"), &mut data(), &settings).expect("prompts");
        let mut backend = Local { model: &mut model, scoring: Scoring::Shared, wait: &wait };
        for (line, item) in all_lines(&mut backend, &own).iter().zip(run["items"].as_array().expect("items")) {
            let line: Value = serde_json::from_str(line).expect("a line");
            for (own, expected) in
                line["filtered_resps"].as_array().unwrap().iter().zip(item["lls"].as_array().unwrap())
            {
                let (own, expected) = (own[0].as_f64().unwrap(), expected.as_f64().unwrap());
                assert!((own - expected).abs() < 1e-3, "{own}, expected {expected}");
            }
        }
    }
}

/// Letters and texts, with and without examples, by the rules of both harnesses.
#[test]
fn scores_on_a_device_are_the_references() {
    let some = ["lm-eval/arab_culture_egypt", "lm-eval/aexams_Biology", "lm-eval/copa_ar", "lighteval/boolq_ar"];
    assert!(compare("llama2_mha", &mut open("llama2_mha"), |task, _| some.contains(&task)) > 10);
}

#[test]
fn scores_of_a_model_without_bos_are_the_references() {
    let some = ["lm-eval/aexams_Science", "lm-eval/egyhellaswag", "lighteval/acva:Algeria", "lighteval/boolq_ar"];
    assert!(compare("qwen2_bias", &mut open("qwen2_bias"), |task, _| some.contains(&task)) >= 10);
}

#[test]
fn a_trainer_scores_as_the_references() {
    let path = fixtures().join("models/llama2_mha");
    let checkpoint = block_on(Checkpoint::open(Rc::new(DirectorySource::new(path).unwrap()))).unwrap();
    let text = block_on(TextPipeline::open(checkpoint.source().as_ref(), None)).unwrap();
    // Without products of int8 and f16, whose rounding is larger than what is compared.
    let disable = Disable::parse("f16,dot").unwrap();
    let gpu: Gpu = block_on(Gpu::open(&GpuOptions { disable, ..GpuOptions::default() })).expect("a device");
    let load = LoadOptions { context: 1024 };
    let mut decoder = block_on(bayan_models::open(&checkpoint, Some(&gpu), &load, None, &mut |_, _| {})).unwrap();
    let config = Recipe::default().adapter_config().unwrap();
    let adapter = new_adapter(&mut *decoder, config, &mut Rng::new(1, 1)).unwrap();
    let options = TrainerOptions { context: 1024, ..TrainerOptions::default() };
    let mut trainer = Trainer::new(Some(&gpu), decoder, &adapter, options).unwrap();
    let reference = json("llama2_mha.json");
    let (name, mut compared) = ("lm-eval/copa_ar", 0);
    let (_, _, items) = runs(&reference["runs"]).find(|(task, shots, _)| (*task, *shots) == (name, 0)).expect(name);
    let own = prepared(name, 0);
    let (tokenizer, batch) = (&text.tokenizer, (4, 400));
    let mut backend = Training { trainer: &mut trainer, tokenizer, context: 1023, batch, wait: &wait };
    // A new adapter changes nothing yet.
    for (line, item) in all_lines(&mut backend, &own).iter().zip(items) {
        let line: Value = serde_json::from_str(line).expect("a line");
        let Expected { sums, values, .. } = expected(&own.task, item);
        for (scored, sum) in line["filtered_resps"].as_array().expect("scores").iter().zip(&sums) {
            let own = scored[0].as_f64().expect("a number");
            assert!((own - sum).abs() < 1e-3, "{name}: {own}, expected {sum}");
            compared += 1;
        }
        let first = own.task.metrics[0].name();
        assert_eq!(line[first], values[0], "{name}: {first}");
    }
    assert!(compared >= 4, "{compared}");
    let scores = Benchmarks::open(&[name.to_owned()], &mut data(), None).unwrap().score(&mut backend).unwrap();
    let right: f64 = items.iter().map(|item| item["acc"].as_f64().expect("a value")).sum();
    assert_eq!(scores[&format!("{name}/acc")], right / items.len() as f64);
}

/// A backend whose texts are changed before they are scored: a planted fault.
struct Faulty<'a, 'b> {
    inner: Local<'a>,
    fault: &'b dyn Fn(&mut ScoredText),
}

impl Backend for Faulty<'_, '_> {
    fn tokenizer(&self) -> &Tokenizer {
        self.inner.tokenizer()
    }

    fn context(&self) -> usize {
        self.inner.context()
    }

    fn score(
        &mut self,
        items: &[Vec<ScoredText>],
        on_item: OnItem<'_>,
    ) -> bayan_evaluate::Result<Vec<Vec<Likelihood>>> {
        let mut items = items.to_vec();
        items.iter_mut().flatten().for_each(self.fault);
        self.inner.score(&items, on_item)
    }

    fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        tokens: usize,
        stop: &[&str],
        on_item: OnItem<'_>,
    ) -> bayan_evaluate::Result<Vec<String>> {
        self.inner.generate(prompts, tokens, stop, on_item)
    }
}

#[test]
fn planted_faults_are_found() {
    let reference = json("llama2_mha.json");
    let mut model = open("llama2_mha");
    let (name, shots) = ("lm-eval/egyhellaswag", 0);
    let (_, _, items) = runs(&reference["runs"]).find(|run| (run.0, run.1) == (name, shots)).expect("the run");
    let own = prepared(name, shots);
    let no_fault = |_: &mut ScoredText| {};
    let without_bos = |text: &mut ScoredText| {
        text.ids.remove(0);
        text.from -= 1;
    };
    let twice_bos = |text: &mut ScoredText| {
        text.ids.insert(0, text.ids[0]);
        text.from += 1;
    };
    let one_later = |text: &mut ScoredText| text.from += 1;
    let mut found = |own: &Prepared, fault: &dyn Fn(&mut ScoredText)| {
        let inner = Local { model: &mut model, scoring: Scoring::Shared, wait: &wait };
        let lines = all_lines(&mut Faulty { inner, fault }, own);
        differences(own, &lines, items).len()
    };
    assert_eq!(found(&own, &no_fault), 0);
    assert!(found(&own, &without_bos) > 0, "no BOS");
    assert!(found(&own, &twice_bos) > 0, "BOS twice");
    assert!(found(&own, &one_later) > 0, "the first token of a choice is not scored");
    let mut other = own.clone();
    other.task.delimiter = "";
    assert!(found(&other, &no_fault) > 0, "a wrong delimiter");
}

#[test]
fn bytes_in_place_of_code_points_are_found() {
    let by = |length: fn(&str) -> usize| {
        let mut wrong = 0;
        let reference = json("llama2_mha.json");
        let prompts = json("prompts.json");
        for ((name, shots, items), (_, _, texts)) in runs(&reference["runs"]).zip(runs(&prompts)) {
            let own = prepared(name, shots);
            for ((item, text), asked) in items.iter().zip(texts).zip(&own.items) {
                let Some(expected) = item["acc_norm"].as_f64() else { continue };
                let sums = item["lls"].as_array().unwrap().iter().map(|sum| sum.as_f64().unwrap());
                let lengths = asked.question.choices.iter().map(|choice| length(choice) as f64);
                let normalized: Vec<f64> = sums.zip(lengths).map(|(sum, length)| sum / length).collect();
                let right = asked.question.gold == Some(first_largest(&normalized));
                wrong += usize::from(right != (expected == 1.0));
                assert!(text["prompt"].is_string());
            }
        }
        wrong
    };
    assert_eq!(by(|choice| choice.chars().count()), 0);
    assert!(by(str::len) > 0, "some reference must tell code points from bytes");
}

/// Samples as the reference's values, for totals.
fn reference_samples(task: &Task, items: &[Value]) -> Vec<Sample> {
    let of = |(number, item): (usize, &Value)| Sample {
        number: number as u64,
        prompt_hash: String::new(),
        prompt_length: 0,
        gold: None,
        pick: None,
        choices: vec![],
        values: expected(task, item).values,
        counts: vec![],
        truncated: false,
    };
    items.iter().enumerate().map(of).collect()
}

#[test]
fn totals_and_their_errors_are_those_of_lm_eval() {
    let reference = json("llama2_mha.json");
    let close = |own: f64, expected: &Value, what: &str| {
        let expected = expected.as_f64().unwrap_or_else(|| panic!("{what} of the reference"));
        assert!((own - expected).abs() < 2e-6, "{what}: {own}, expected {expected}");
    };
    let all = reference["runs"].as_array().unwrap();
    let owned: Vec<(Prepared, &Value)> = all
        .iter()
        .filter(|run| run["task"].as_str().unwrap().starts_with("lm-eval/") && run["shots"] == 0)
        .map(|run| (prepared(run["task"].as_str().unwrap(), 0), run))
        .collect();
    let mut finished = Vec::new();
    for (own, run) in &owned {
        let samples = reference_samples(&own.task, run["items"].as_array().unwrap());
        for (at, metric) in own.task.metrics.iter().enumerate() {
            let score = mean(&samples.iter().map(|sample| sample.values[at]).collect::<Vec<_>>());
            let name = metric.name();
            close(score.value, &run["results"][format!("{name},none")], name);
            close(score.error.unwrap(), &run["results"][format!("{name}_stderr,none")], name);
        }
        finished.push(Finished { prepared: own, samples });
    }
    let group = select(&["lm-eval/aexams".into()]).unwrap().groups.remove(0);
    for (name, score) in group_scores(&group, &finished, 1) {
        let expected = &reference["groups"]["lm-eval/aexams"];
        close(score.value, &expected[format!("{name},none")], &name);
        close(score.error.unwrap(), &expected[format!("{name}_stderr,none")], &name);
        assert_eq!(score.items, 12);
    }
}

/// The bytes of a finished file of samples.
fn run_file(folder: &Path, own: &Prepared, resume: bool, stop: bool, model: &mut Model) -> Vec<u8> {
    let plan = run::plan(std::slice::from_ref(own), &Settings::default(), 1);
    let out = Output::open(folder, &plan, resume).expect("a folder");
    let inner = Local { model, scoring: Scoring::Shared, wait: &wait };
    let mut backend = Stopping { inner, batches: if stop { 1 } else { usize::MAX } };
    let mut counts = Vec::new();
    let result = out.run(&mut backend, own, &mut |items| counts.push(items));
    assert_eq!(result.is_err(), stop);
    // First what was done before, then one after the other.
    assert_eq!(counts[0], if resume { run::BATCH } else { 0 });
    let done = if stop { run::BATCH } else { own.items.len() };
    assert_eq!((counts.iter().sum::<usize>(), counts[1..].iter().max()), (done, Some(&1)));
    std::fs::read(samples::path(folder, &own.task)).expect("samples")
}

/// Fails after some batches, as a killed run ends.
struct Stopping<'a> {
    inner: Local<'a>,
    /// Batches that it still scores.
    batches: usize,
}

impl Backend for Stopping<'_> {
    fn tokenizer(&self) -> &Tokenizer {
        self.inner.tokenizer()
    }

    fn context(&self) -> usize {
        self.inner.context()
    }

    fn score(
        &mut self,
        items: &[Vec<ScoredText>],
        on_item: OnItem<'_>,
    ) -> bayan_evaluate::Result<Vec<Vec<Likelihood>>> {
        let Some(left) = self.batches.checked_sub(1) else {
            return Err(bayan_generate::GenerateError::EmptyPrompt.into());
        };
        self.batches = left;
        self.inner.score(items, on_item)
    }

    fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        tokens: usize,
        stop: &[&str],
        on_item: OnItem<'_>,
    ) -> bayan_evaluate::Result<Vec<String>> {
        self.inner.generate(prompts, tokens, stop, on_item)
    }
}

#[test]
fn a_killed_run_resumes_to_the_same_file() {
    let mut model = open("llama2_mha");
    let mut own = prepared("lm-eval/copa_ar", 0);
    // Three batches, the last of which is not full, of short texts that are all different.
    let question = |number: usize| Question::new(String::new(), vec![format!("أ {number}"), "ب".into()], 1);
    let item = |number| run::Item {
        number,
        question: question(number),
        prompt: format!("س {number}:"),
        ..own.items[0].clone()
    };
    own.items = (0..2 * run::BATCH + 5).map(item).collect();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let whole = run_file(folders[0].path(), &own, false, false, &mut model);
    let begun = run_file(folders[1].path(), &own, false, true, &mut model);
    assert!(!begun.is_empty() && begun.len() < whole.len());
    // A line that was not written to its end.
    let path = samples::path(folders[1].path(), &own.task);
    std::fs::write(&path, [&begun[..], b"{\"doc_id\": 64, \"do"].concat()).unwrap();
    assert_eq!(run_file(folders[1].path(), &own, true, false, &mut model), whole);
    let plan = run::plan(std::slice::from_ref(&own), &Settings { limit: Some(3), ..Default::default() }, 1);
    let error = Output::open(folders[1].path(), &plan, true).unwrap_err().to_string();
    assert!(error.contains("differs in limit"), "{error}");
    assert!(Output::open(folders[1].path(), &plan, false).unwrap_err().to_string().contains("--resume"));
}

#[test]
fn one_by_one_scores_the_same() {
    let mut model = open("llama2_mha");
    let own = prepared("lm-eval/aexams_Science", 0);
    let mut sums = |scoring: Scoring| -> Vec<f64> {
        let mut backend = Local { model: &mut model, scoring, wait: &wait };
        let lines = all_lines(&mut backend, &own);
        let parsed = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        parsed
            .flat_map(|line| line["filtered_resps"].as_array().unwrap().clone())
            .map(|r| r[0].as_f64().unwrap())
            .collect()
    };
    let (packed, single) = (sums(Scoring::Shared), sums(Scoring::OneByOne));
    assert_eq!(packed.len(), 12);
    assert!(packed.iter().zip(&single).all(|(a, b)| (a - b).abs() < 1e-4), "{packed:?} {single:?}");
}
