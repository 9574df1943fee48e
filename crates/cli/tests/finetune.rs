//! Fine-tuning and merging through the program: killed and resumed, dry runs, refusals with reasons.

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{bayan, fail, fixtures, model, run, succeed};
use serde_json::{Value, json};

/// Ten conversations.
fn data(directory: &Path) -> PathBuf {
    let path = directory.join("train.jsonl");
    let row = |n: usize| {
        let (question, answer) = (format!("ما العدد رقم {n}؟"), format!("العدد {n} يا صديقي"));
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
            .to_string()
    };
    std::fs::write(&path, (0..10).map(|n| row(n) + "\n").collect::<String>()).expect("written");
    path
}

fn arguments(data: &Path, output: &Path) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let mut list = vec![
        "finetune".into(),
        "--model".into(),
        text(&model("llama3_gqa")),
        "--data".into(),
        text(data),
        "--output".into(),
        text(output),
    ];
    list.extend(
        "--max-steps 6 --batch-size 2 --lora-r 4 --lora-dropout 0.1 --save-every 1 --val-split 2 --eval-every 2 --lr 1e-3 --max-seq-length 160"
            .split(' ')
            .map(String::from),
    );
    list
}

/// (step, loss, norm, evaluation loss) of each entry of a run's log, as written.
fn log(output: &Path) -> Vec<[Value; 4]> {
    let text = std::fs::read_to_string(output.join("train_log.jsonl")).expect("a log");
    let line = |line: &str| {
        let value: Value = serde_json::from_str(line).expect("JSON");
        ["step", "loss", "grad_norm", "eval_loss"].map(|name| value[name].clone())
    };
    text.lines().map(line).collect()
}

#[test]
fn a_killed_run_is_resumed_to_the_bit() {
    let place = tempfile::tempdir().expect("a directory");
    let data = data(place.path());
    let [whole, parts] = ["whole", "parts"].map(|name| place.path().join(name));
    let out = succeed(&run(&arguments(&data, &whole).iter().map(String::as_str).collect::<Vec<_>>()));
    for part in ["rows read", "temporary buffers", "step    6/6", "evaluation after step 6", "tokens/s", "bayan chat"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let mut child = bayan()
        .args(arguments(&data, &parts))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let lines = BufReader::new(child.stdout.take().expect("stdout is a pipe")).lines();
    let seen = lines.map_while(Result::ok).any(|line| line.starts_with("saved") && line.ends_with("checkpoint-3"));
    child.kill().expect("killed");
    child.wait().expect("gone");
    assert!(seen, "the third checkpoint was saved");
    assert!(!parts.join("adapter_config.json").exists(), "no result yet");
    let target = parts.display().to_string();
    succeed(&run(&["finetune", "--resume", "--output", &target]));
    assert_eq!(log(&parts), log(&whole));
    let weights = |of: &Path| std::fs::read(of.join("adapter_model.safetensors")).expect("an adapter");
    assert!(weights(&parts) == weights(&whole), "the adapters are the same to the bit");
    for file in ["loss.png", "loss.html", "recipe.toml", "tensorboard", "checkpoint-6"] {
        assert!(parts.join(file).exists(), "{file}");
    }
    assert!(fail(&run(&["finetune", "--resume", "--output", &target, "--rank", "8"]), 1).contains("rank"));
    let again = arguments(&data, &parts);
    assert!(fail(&run(&again.iter().map(String::as_str).collect::<Vec<_>>()), 1).contains("--overwrite"));
}

#[test]
fn a_dry_run_shows_what_is_trained_and_loads_nothing() {
    let place = tempfile::tempdir().expect("a directory");
    let data = data(place.path()).display().to_string();
    let base = model("llama3_gqa").display().to_string();
    let shown =
        succeed(&run(&["finetune", "--model", &base, "--data", &data, "--dry-run=2", "--max-seq-length", "160"]));
    assert!(shown.contains("example 2\n") && !shown.contains("example 3\n"), "{shown}");
    assert!(shown.contains("⟦العدد 0 يا صديقي"), "{shown}");
    let lines = succeed(&run(&["finetune", "--model", &base, "--data", &data, "--dry-run", "--json"]));
    let events: Vec<String> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["event"].to_string()).collect();
    assert_eq!(events.len(), 6, "{events:?}");
    let bad = place.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n{\"messages\": 3}\n")
        .expect("written");
    let bad = bad.display().to_string();
    let message = fail(&run(&["finetune", "--model", &base, "--data", &bad, "--dry-run"]), 1);
    assert!(message.contains("line 2") && message.contains("messages"), "{message}");
    succeed(&run(&["finetune", "--model", &base, "--data", &bad, "--dry-run", "--skip-bad"]));
    for (flags, part) in [
        (vec!["--target-modules", "q_prj"], "q_proj"),
        (vec!["--set", "learning_rat=1"], "learning_rate"),
        (vec!["--preset", "bark"], "barka"),
        (vec!["--quantize", "q3"], "q4_0"),
    ] {
        let message =
            fail(&run(&[&["finetune", "--model", &base, "--data", &data, "--dry-run"], flags.as_slice()].concat()), 1);
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(fail(&run(&["finetune", "--model", &base]), 1).contains("--data"));
}

#[test]
fn benchmarks_are_scored_while_training() {
    let place = tempfile::tempdir().expect("a directory");
    let (data, output) = (data(place.path()), place.path().join("run"));
    let benchmarks = fixtures("evaluate/data").display().to_string();
    let [base, data, output_text] = [&model("llama3_gqa"), &data, &output].map(|path| path.display().to_string());
    let arguments = ["finetune", "--model", &base, "--data", &data, "--output", &output_text, "--lora-r", "4"];
    let flags =
        ["--max-steps", "3", "--batch-size", "2", "--lr", "1e-3", "--max-seq-length", "512", "--eval-steps", "2"];
    let more = ["--eval", "lm-eval/aexams_Science,copa_ar", "--eval-data", &benchmarks, "--eval-limit", "2"];
    let shown = succeed(&run(&[&arguments[..], &flags, &more].concat()));
    assert!(shown.contains("benchmarks after step 2: lm-eval/aexams_Science/acc "), "{shown}");
    let text = std::fs::read_to_string(output.join("train_log.jsonl")).expect("a log");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let scored: Vec<&Value> = lines.iter().filter(|line| line["scores"].is_object()).collect();
    let steps: Vec<u64> = scored.iter().filter_map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, [1, 2], "after every second step and the last: {text}");
    for line in scored {
        let scores = line["scores"].as_object().expect("scores");
        let names: Vec<&String> = scores.keys().collect();
        assert!(names.iter().any(|name| *name == "lm-eval/copa_ar/acc_norm"), "{names:?}");
        let whole = |score: &Value| [0.0, 0.5, 1.0].contains(&score.as_f64().expect("a score"));
        assert!(scores.values().all(whole), "of two items: {scores:?}");
    }
    let page = std::fs::read_to_string(output.join("loss.html")).expect("plots");
    assert!(page.contains("Benchmarks") && page.contains("lm-eval/aexams_Science/acc"));
    // What cannot be scored is refused before the weights are loaded.
    let refused = |names: &str, data: &str| {
        let more = ["--overwrite", "--max-steps", "1", "--eval", names, "--eval-data", data];
        fail(&run(&[&arguments[..], &more].concat()), 1)
    };
    assert!(refused("acegpt/exams", &benchmarks).contains("answered in text"));
    assert!(refused("nothing", &benchmarks).contains("bayan eval list"));
    assert!(refused("copa_ar", "nowhere").contains("--eval-data"));
    let alone = [&arguments[..], &["--overwrite", "--eval", "copa_ar"]].concat();
    assert!(fail(&run(&alone), 1).contains("eval_data beside it"));
}

#[test]
fn preferences_are_trained() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("pairs.jsonl");
    let row = |n: usize| {
        json!({"prompt": format!("سؤال {n}"), "chosen": format!("جواب جيد {n}"), "rejected": format!("لا أدري {n}")})
            .to_string()
    };
    std::fs::write(&path, (0..6).map(|n| row(n) + "\n").collect::<String>()).expect("written");
    let (base, data) = (model("llama3_gqa").display().to_string(), path.display().to_string());
    let mut losses = vec![];
    for (name, precompute) in [("a", "--precompute-reference=false"), ("b", "--precompute-reference=true")] {
        let output = place.path().join(name).display().to_string();
        let flags = [
            "--method",
            "dpo",
            "--max-steps",
            "4",
            "--batch-size",
            "2",
            "--lr",
            "1e-3",
            "--val-split",
            "2",
            precompute,
        ];
        let out =
            succeed(&run(
                &[&["finetune", "--model", &base, "--data", &data, "--output", &output], flags.as_slice()].concat()
            ));
        assert!(out.contains("accuracy") && out.contains("margin"), "{out}");
        losses.push(log(Path::new(&output)));
    }
    let loss = |run: usize, step: usize| losses[run][step][1].as_f64().expect("a loss");
    assert!((loss(0, 0) - std::f64::consts::LN_2).abs() < 1e-6, "an adapter that changes nothing yet has loss ln 2");
    assert!(loss(0, 3) < loss(0, 0));
    assert!((0..4).all(|step| (loss(0, step) - loss(1, step)).abs() < 1e-5), "{losses:?}");
}

#[test]
fn all_parameters_are_trained_into_a_checkpoint() {
    let place = tempfile::tempdir().expect("a directory");
    let data = data(place.path()).display().to_string();
    // Only the configuration and the tokenizer of a model.
    let bare = place.path().join("bare");
    std::fs::create_dir(&bare).expect("made");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(model("qwen3_qknorm").join(file), bare.join(file)).expect("copied");
    }
    let output = place.path().join("run");
    let (base, target) = (bare.display().to_string(), output.display().to_string());
    let flags = "--full --from-scratch --max-steps 4 --batch-size 2 --lr 3e-3 --max-seq-length 160 --neftune-noise-alpha 1 --chat-template chatml";
    let arguments = ["finetune", "--model", &base, "--data", &data, "--output", &target];
    let out = succeed(&run(&arguments.into_iter().chain(flags.split(' ')).collect::<Vec<_>>()));
    assert!(out.contains("all parameters") && out.contains("run/model"), "{out}");
    let losses: Vec<f64> = log(&output).iter().filter_map(|entry| entry[1].as_f64()).collect();
    // Random weights predict almost uniformly: the loss is the ln of the vocabulary size.
    assert!((losses[0] - 1439f64.ln()).abs() < 0.3 && losses[3] < losses[0], "{losses:?}");
    let (initial, trained) =
        (logits(&output.join("initial"), None, place.path()), logits(&output.join("model"), None, place.path()));
    assert!(initial.len() == 1439 && trained.len() == 1439 && initial != trained);
    let refused = |flags: &[&str]| fail(&run(&[arguments.as_slice(), &["--overwrite"], flags].concat()), 1);
    assert!(refused(&["--full", "--quantize", "q8_0"]).contains("f32"));
    assert!(refused(&["--full", "--rank", "4"]).contains("adapter"));
    let embedded = [
        "finetune",
        "--model",
        "embedded",
        "--data",
        &data,
        "--output",
        &target,
        "--overwrite",
        "--full",
        "--max-steps",
        "1",
    ];
    let message = fail(&run(&embedded), 1);
    assert!(message.contains("q8_0") && message.contains("not quantized"), "{message}");
}

fn logits(base: &Path, adapter: Option<&Path>, place: &Path) -> Vec<f64> {
    logits_of(base, adapter, place, &json!([5, 9, 33, 7]))
}

/// The logits after these ids.
fn logits_of(base: &Path, adapter: Option<&Path>, place: &Path, ids: &Value) -> Vec<f64> {
    let file = place.join("request.json");
    let request = json!({"version": 1, "model": base, "adapter": adapter, "requests": [{"id": 1, "op": "logits", "ids": ids, "full_last": true}]});
    std::fs::write(&file, request.to_string()).expect("written");
    let out = succeed(&run(&[
        "conformance",
        "--disable",
        "f16,dot",
        "--cache",
        "f32",
        "--request",
        &file.display().to_string(),
    ]));
    let answer: Value = serde_json::from_str(out.lines().last().expect("a line")).expect("JSON");
    answer["responses"][0]["last_logits"]
        .as_array()
        .unwrap_or_else(|| panic!("{out}"))
        .iter()
        .filter_map(Value::as_f64)
        .collect()
}

#[test]
fn a_merged_model_answers_as_base_and_adapter_do() {
    let place = tempfile::tempdir().expect("a directory");
    let (base, adapter) = (model("qwen2_bias"), fixtures("lora/qwen2_r4_rslora/adapter_final"));
    let text = |path: &Path| path.display().to_string();
    let beside = logits(&base, Some(&adapter), place.path());
    let size: f64 = beside.iter().map(|v| v * v).sum();
    for (format, bound) in [("f32", 1e-9), ("f16", 1e-4), ("bf16", 1e-2)] {
        let out = place.path().join(format);
        let arguments = ["merge", &text(&base), &text(&out), "--adapter", &text(&adapter), "--format", format];
        succeed(&run(&arguments));
        let merged = logits(&out, None, place.path());
        let error = merged.iter().zip(&beside).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / size;
        assert!(error < bound, "{format}: {error:.1e}");
        assert!(fail(&run(&arguments), 1).contains("--overwrite"));
    }
    let out = text(&place.path().join("small"));
    let faint = format!("{}:0.01", text(&adapter));
    let found = run(&["merge", &text(&base), &out, "--adapter", &faint, "--format", "q4_0"]);
    assert!(succeed(&found).contains("logits: the adapter changes them by"));
    assert!(common::text(&found.stderr).contains("of the adapter's effect on the logits"));
    let message = fail(
        &run(&["merge", &text(&model("llama3_gqa")), &text(&place.path().join("none")), "--adapter", &text(&adapter)]),
        1,
    );
    assert!(
        message.contains("base model that the adapter was trained on") || message.contains("as this model has"),
        "{message}"
    );
    assert!(!place.path().join("none").exists());
}

#[test]
fn adapters_of_every_kind_merge_as_peft_runs_them() {
    let place = tempfile::tempdir().expect("a directory");
    let text = |path: &Path| path.display().to_string();
    let entries = std::fs::read_dir(fixtures("adapters")).expect("tests/fixtures/adapters");
    let cases: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    assert!(cases.len() > 8, "{cases:?}");
    for case in cases {
        let name = case.file_name().expect("a name").to_string_lossy().into_owned();
        let read =
            |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON") };
        let expected = read(&case.join("expected.json"));
        let base = expected["model"].as_str().expect("a model");
        let ids = read(&fixtures(&format!("expected/{base}/prompts.json")))["r33"].clone();
        let base = model(base);
        let plain = name == "eva";
        let out = place.path().join(&name);
        succeed(&run(&["merge", &text(&base), &text(&out), "--adapter", &text(&case), "--format", "f32"]));
        let reference: Vec<f64> = serde_json::from_value(expected["last_logits"].clone()).expect("logits");
        let error = |found: &[f64]| {
            let size: f64 = reference.iter().map(|v| v * v).sum();
            assert_eq!(found.len(), reference.len());
            found.iter().zip(&reference).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / size
        };
        let merged = error(&logits_of(&out, None, place.path(), &ids));
        assert!(merged < 1e-9, "{name}: {merged:.1e}");
        let adapter = text(&case);
        let arguments = ["generate", "a", "-n", "1", "--model", &text(&base), "--adapter", &adapter];
        if plain {
            let beside = error(&logits_of(&base, Some(&case), place.path(), &ids));
            assert!(beside < 1e-9, "{name}: {beside:.1e}");
        } else {
            assert!(fail(&run(&arguments), 1).contains("bayan merge"), "{name}");
        }
    }
}
