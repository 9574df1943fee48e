//! `bayan eval` as a user runs it: a run with its files, comparison, resumption, and data that it refuses.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use common::{bayan, fail, fixtures, model, run, succeed, text};
use serde_json::Value;

fn evaluate(out: &Path, more: &[&str]) -> std::process::Output {
    let (data, model) = (fixtures("evaluate/data").display().to_string(), model("llama2_mha").display().to_string());
    let out = out.display().to_string();
    let own = ["eval", "run", "--data", &data, "--model", &model, "--out", &out, "--cache", "f32", "--context", "1024"];
    let mut all: Vec<&str> = own.to_vec();
    all.extend(more);
    run(&all)
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a file")).expect("JSON")
}

#[test]
fn a_run_writes_scores_samples_and_a_report() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (folder.path().join("a"), folder.path().join("b"));
    let tasks = ["--tasks", "lm-eval/arabicmmlu_driving_test,acegpt/mmlu:anatomy"];
    let run_to = |out: &Path, more: &[&str]| evaluate(out, &[&tasks[..], more].concat());
    let table = succeed(&run_to(&first, &["--shots", "1"]));
    assert!(table.contains("lm-evaluation-harness 0.4.13") && table.contains("AceGPT 061a656"), "{table}");
    assert!(
        table.lines().any(|line| line.contains("driving_test") && line.contains("acc") && line.contains('±')),
        "{table}"
    );
    let results = read(&first.join("results.json"));
    let entry = &results["results"]["lm-eval/arabicmmlu_driving_test"];
    assert!(entry["acc,none"].is_f64() && entry["acc_stderr,none"].is_f64() && entry["sample_len"] == 3, "{entry}");
    assert_eq!(results["n-shot"]["acegpt/mmlu:anatomy"], 1);
    let hashes = results["data_sha256"].as_object().expect("hashes");
    assert_eq!(hashes.len(), 4, "two files of each task: {hashes:?}");
    assert!(hashes.values().all(|hash| hash.as_str().is_some_and(|hash| hash.len() == 64)));
    let samples = std::fs::read_to_string(first.join("samples_acegpt_mmlu_anatomy.jsonl")).expect("samples");
    let sample: Value = serde_json::from_str(samples.lines().next().expect("a line")).expect("JSON");
    assert!(sample["resps"][0][0].is_string() && sample["prompt_hash"].is_string(), "{sample}");
    assert_eq!(samples.lines().count(), 4);
    let page = std::fs::read_to_string(first.join("report.html")).expect("a report");
    assert!(page.contains("<svg") && page.contains("By length") && page.contains("driving_test"));
    // The folder is not overwritten; the same run goes on and changes nothing.
    assert!(fail(&run_to(&first, &["--shots", "1"]), 1).contains("--resume"));
    let before = std::fs::read(first.join("results.json")).expect("results");
    succeed(&run_to(&first, &["--shots", "1", "--resume"]));
    assert_eq!(std::fs::read(first.join("results.json")).expect("results"), before);
    assert!(fail(&run_to(&first, &["--shots", "0", "--resume"]), 1).contains("differs in tasks"));
    // Another format of the weights is another run of the same prompts.
    succeed(&run_to(&second, &["--shots", "1", "--quantize", "q8_0"]));
    let paths = [&first, &second].map(|path| path.display().to_string());
    let compared: Value =
        serde_json::from_str(&succeed(&run(&["eval", "compare", &paths[0], &paths[1], "--json"]))).expect("JSON");
    let entries = compared.as_array().expect("comparisons");
    assert!(entries.iter().any(|one| one["task"] == "lm-eval/arabicmmlu_driving_test" && one["n"] == 3), "{compared}");
    assert!(succeed(&run(&["eval", "compare", &paths[0], &paths[1]])).contains("McNemar"));
}

#[test]
fn data_that_cannot_be_scored_are_refused_with_file_and_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("copa_ar");
    std::fs::create_dir(&data).expect("a folder");
    let good = r#"{"query": "سؤال", "sol1": "أ", "sol2": "ب", "label": 0}"#;
    let root = folder.path().display().to_string();
    let out = folder.path().join("out").display().to_string();
    let refused = |rows: &str, more: &[&str]| {
        std::fs::write(data.join("test.jsonl"), rows).expect("a file");
        let own = ["eval", "run", "--data", &root, "--out", &out, "--tasks", "copa_ar"];
        let error = fail(&run(&[&own[..], more].concat()), 1);
        assert!(!Path::new(&out).exists(), "nothing is written before all data are checked");
        error
    };
    let row = |rows: &str, expected: &str| {
        let error = refused(&format!("{good}\n{rows}\n"), &[]);
        assert!(error.contains("test.jsonl: line 2") && error.contains(expected), "{error}");
    };
    row(r#"{"query": "سؤال", "sol1": "أ", "label": 0}"#, "`sol2`: expected this column, found query, sol1, label");
    row(r#"{"query": " ", "sol1": "أ", "sol2": "ب", "label": 0}"#, "`query`: expected a text, got an empty cell");
    row(r#"{"query": "سؤال", "sol1": "أ", "sol2": "ب", "label": 2}"#, "`label`: expected one of 2 choices");
    row(r#"{"query": "سؤال", "sol1": "أ", "sol2": "ب", "label": "ج"}"#, "`label`: expected a whole number");
    row(r#"{"query": "سؤال", "sol1": ["أ"], "sol2": "ب", "label": 0}"#, "`sol1`: expected a text");
    row("{", "expected a JSON object");
    let empty = refused("", &[]);
    assert!(empty.contains("expected one row or more, got none in copa_ar/test.jsonl"), "{empty}");
    let columns = refused(good, &["--columns", "query=سؤال"]);
    assert!(columns.contains("`query`: expected this column"), "{columns}");
    let columns = refused(good, &["--columns", "extra=text"]);
    assert!(
        columns.contains("--columns extra=text: expected a column `text` in the data, got label, query"),
        "{columns}"
    );
    assert!(refused(good, &["--shots", "2"]).contains("2 rows in `test`"));
    let columns = refused(r#"{"q": "", "sol1": "أ", "sol2": "ب", "label": 0}"#, &["--columns", "query=q"]);
    assert!(columns.contains("`query`"), "{columns}");
    std::fs::remove_file(data.join("test.jsonl")).expect("a file");
    std::fs::write(data.join("train.jsonl"), good).expect("a file");
    let own = ["eval", "run", "--data", &root, "--out", &out, "--tasks", "copa_ar"];
    assert!(fail(&run(&own), 1).contains("split `test`"));
    let own = ["eval", "run", "--data", &root, "--out", &out, "--tasks", "arabic_exams"];
    assert!(fail(&run(&own), 1).contains("lm-eval/arabic_exams"));
    assert!(succeed(&run(&["eval", "list"])).contains("ETEC"));
}

/// Ends the process if the test does not.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_scores_as_the_model_in_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let (local, remote) = (folder.path().join("local"), folder.path().join("remote"));
    let tasks = ["--tasks", "lm-eval/aexams_Science,acegpt/exams:Physics", "--shots", "1"];
    succeed(&evaluate(&local, &tasks));
    let prompts = folder.path().join("prompts");
    succeed(&evaluate(&prompts, &[&tasks[..], &["--as-served"]].concat()));
    let mut command = bayan();
    command.args(["serve", "--port", "0", "--no-warm-up", "--context", "1024", "--cache", "f32", "--parallel", "2"]);
    command.arg("--model").arg(model("llama2_mha")).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = Process(command.spawn().expect("the program starts"));
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
    let url = format!("http://{}", line.trim().rsplit("http://").next().expect("an address"));
    let output = evaluate(&remote, &[&tasks[..], &["--server", &url, "--server-model", "llama2_mha"]].concat());
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    let scores = |out: &Path, task: &str| -> Vec<Value> {
        let lines = std::fs::read_to_string(out.join(format!("samples_{task}.jsonl"))).expect("samples");
        lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["filtered_resps"].clone()).collect()
    };
    let (own, theirs) = (scores(&local, "lm-eval_aexams_Science"), scores(&remote, "lm-eval_aexams_Science"));
    assert_eq!(own.len(), 3);
    assert_eq!(own, theirs, "the same bits");
    assert_eq!(own, scores(&prompts, "lm-eval_aexams_Science"), "the same bits");
    let task = "acegpt_exams_Physics";
    assert_eq!(scores(&local, task), scores(&remote, task), "the same text");
}
