//! Each subcommand does what its help says.

mod common;

use std::fs;

use common::{bayan, fail, finish, fixtures, model, run, run_with_input, succeed, text};
use serde_json::Value;

const MODEL: &str = "qwen3_qknorm";

fn place() -> String {
    model(MODEL).to_str().expect("a path").to_string()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(&run(arguments))).expect("JSON")
}

#[test]
fn text_becomes_ids_and_text_again() {
    let place = place();
    let source = "السلام عليكم، كَيْفَ الحال؟ ١٢٣";
    let ids = succeed(&run(&["tokenize", source, "--model", &place]));
    assert!(ids.split_whitespace().all(|id| id.parse::<u32>().is_ok()));
    assert_eq!(succeed(&run_with_input(&["tokenize", "--decode", "--model", &place], &ids)).trim_end(), source);
    assert_eq!(succeed(&run_with_input(&["tokenize", "--model", &place], source)), ids);
    let parsed = json(&["tokenize", source, "--json", "--model", &place]);
    assert_eq!(parsed["count"].as_u64().expect("a count") as usize, ids.split_whitespace().count());
}

#[test]
fn templates_render_and_encode() {
    let place = place();
    let messages = r#"[{"role": "user", "content": "من أنت؟"}]"#;
    let prompt = succeed(&run(&["template", messages, "--model", &place]));
    assert!(prompt.contains("<|im_start|>user\nمن أنت؟<|im_end|>"), "{prompt}");
    let parsed = json(&["template", messages, "--json", "--model", &place]);
    assert_eq!(parsed["text"].as_str().expect("text"), prompt.strip_suffix('\n').expect("a line"));
    assert!(!parsed["ids"].as_array().expect("ids").is_empty());
    let shorter = succeed(&run(&["template", messages, "--no-generation-prompt", "--model", &place]));
    assert!(prompt.len() > shorter.len());
    let other = succeed(&run(&["template", messages, "--chat-template", "gemma", "--model", &place]));
    assert!(other.contains("<start_of_turn>user"), "{other}");
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let place = place();
    let arguments =
        ["generate", "مرحبا", "--max-tokens", "12", "--seed", "7", "--ignore-eos", "--json", "--model", &place];
    let (first, second) = (json(&arguments), json(&arguments));
    assert_eq!(first["text"], second["text"]);
    assert_eq!(
        (&first["usage"]["completion_tokens"], &first["finish_reason"], &first["seed"]),
        (&12.into(), &"length".into(), &7.into())
    );
    let greedy = |prompt: &[&str]| {
        succeed(&run(&[&["generate", "--temperature", "0", "--max-tokens", "8", "--model", &place], prompt].concat()))
    };
    let from_stdin =
        run_with_input(&["generate", "--temperature", "0", "--max-tokens", "8", "--model", &place], "سؤال");
    assert_eq!(greedy(&["سؤال"]), succeed(&from_stdin));
    assert_eq!(greedy(&["--prompt", "سؤال"]), greedy(&["سؤال"]));
    assert_ne!(greedy(&["سؤال", "--chat"]), greedy(&["سؤال"]));
}

#[test]
fn lines_are_answered_together_as_alone() {
    let place = place();
    let flags = [
        "generate",
        "--temperature",
        "0",
        "--max-tokens",
        "6",
        "--ignore-eos",
        "--quantize",
        "f32",
        "--cache",
        "f32",
        "--model",
        &place,
    ];
    let prompts = ["مرحبا", "كيف الحال؟ وما اسمك؟", "١٢٣"];
    let alone =
        prompts.map(|prompt| succeed(&run(&[&flags[..], &[prompt]].concat())).trim_end_matches('\n').to_string());
    let together =
        succeed(&run_with_input(&[&flags[..], &["--lines", "--parallel", "2"]].concat(), &prompts.join("\n\n")));
    let texts: Vec<String> = together
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["text"].as_str().expect("text").to_string())
        .collect();
    assert_eq!(texts, alone);
    assert!(text(&run_with_input(&[&flags[..], &["--lines"]].concat(), "\n").stderr).contains("at least one line"));
}

#[test]
fn a_pipe_gets_one_answer_for_each_line() {
    let place = place();
    let arguments = ["chat", "--temperature", "0", "--max-tokens", "4", "--stop", "\n", "--model", &place];
    let output = run_with_input(&arguments, "مرحبا\n\nمن أنت؟\n/stats\n/exit\nلا يصل\n");
    let (answers, notes) = (succeed(&output), text(&output.stderr));
    assert_eq!(answers.lines().count(), 2, "{answers}");
    assert!(notes.contains("answers so far: 2"), "{notes}");
}

#[test]
fn conversations_are_saved_and_loaded() {
    let (place, folder) = (place(), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("c.json");
    let file = file.to_str().expect("a path");
    let chat = |more: &[&str], input: &str| {
        run_with_input(
            &[&["chat", "--temperature", "0", "--max-tokens", "3", "--stop", "\n", "--model", &place], more].concat(),
            input,
        )
    };
    succeed(&chat(&["--system", "كن موجزًا"], &format!("مرحبا\n/save {file}\n")));
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("a file")).expect("JSON");
    let roles: Vec<&str> =
        saved["messages"].as_array().expect("messages").iter().filter_map(|m| m["role"].as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    let again = format!("{file}.2");
    succeed(&chat(&["--load", file], &format!("/save {again}\n")));
    assert_eq!(std::fs::read_to_string(file).expect("a file"), std::fs::read_to_string(again).expect("a file"));
}

#[test]
fn a_full_context_is_said() {
    let place = place();
    let full = run(&["generate", "مرحبا", "--context", "24", "--ignore-eos", "--json", "--model", &place]);
    let parsed: Value = serde_json::from_str(&succeed(&full)).expect("JSON");
    assert_eq!(parsed["finish_reason"], "context_full");
    assert!(text(&full.stderr).contains("--context 48"), "{}", text(&full.stderr));
    assert_eq!(parsed["usage"]["total_tokens"], 24);
    let chat = ["chat", "--context", "40", "--ignore-eos", "--temperature", "0", "--model", &place];
    let output = run_with_input(&chat, "مرحبا\nكيف الحال؟\n");
    let message = common::fail(&output, 1);
    assert!(message.contains("--context"), "{message}");
}

#[test]
fn quantized_checkpoints_load_and_are_smaller() {
    let (place, folder) = (place(), tempfile::tempdir().expect("a folder"));
    let out = folder.path().join("q");
    let out = out.to_str().expect("a path");
    let report = json(&["quantize", &place, out, "--format", "q4_k", "--json"]);
    let bits = report["bits_per_weight"].as_f64().expect("bits");
    assert!((4.0..8.0).contains(&bits), "{bits}");
    let inspected = json(&["inspect", out, "--json"]);
    assert_eq!(inspected["total"]["bytes"], report["bytes"]);
    assert!(inspected["stored"]["q4_k"]["tensors"].as_u64().is_some_and(|n| n > 0), "{inspected}");
    let generate = |model: &str, more: &[&str]| {
        succeed(&run(&[
            &["generate", "مرحبا", "--temperature", "0", "--max-tokens", "8", "--ignore-eos", "--model", model],
            more,
        ]
        .concat()))
    };
    // Quantizing to files and quantizing on load give the same weights.
    assert_eq!(generate(out, &[]), generate(&place, &["--quantize", "q4_k"]));
}

#[test]
fn inspect_counts_what_loading_allocates() {
    let place = place();
    let inspected = json(&["inspect", &place, "--context", "64", "--cache", "f32", "--json"]);
    let bench = json(&[
        "bench",
        "--prompt",
        "8",
        "--generate",
        "4",
        "--repetitions",
        "2",
        "--context",
        "64",
        "--cache",
        "f32",
        "--json",
        "--model",
        &place,
    ]);
    assert_eq!(inspected["memory"]["cache_bytes"], bench["cache_bytes"]);
    for name in ["prompt", "generate"] {
        assert_eq!(bench[name]["samples"].as_array().expect("samples").len(), 2);
        assert!(bench[name]["mean"].as_f64().is_some_and(|v| v > 0.0), "{bench}");
    }
    let generations = bench["generations"].as_array().expect("generations");
    let kinds: Vec<_> = generations.iter().map(|g| (g["depth"].as_u64(), g["sampled"].as_bool())).collect();
    assert_eq!(kinds, [(Some(0), Some(false)), (Some(8), Some(true))]);
    assert!(generations.iter().all(|g| g["mean"].as_f64().is_some_and(|v| v > 0.0)), "{bench}");
    assert!(
        bench["cost_per_token"]["passes"] == 1 && bench["copy_gb_per_s"].as_f64().is_some_and(|v| v > 0.0),
        "{bench}"
    );
    let (weights, read) = (
        inspected["memory"]["weight_bytes"].as_u64().expect("bytes"),
        bench["weight_bytes_per_token"].as_u64().expect("bytes"),
    );
    assert!(read > weights / 2 && read < 2 * weights, "{read} of {weights}");
}

#[test]
fn devices_and_ops_describe_this_machine() {
    let devices = json(&["devices", "--json"]);
    let first = &devices["devices"][0];
    assert!(
        first["name"].as_str().is_some_and(|n| !n.is_empty())
            && first["limits"]["max_binding_bytes"].as_u64().is_some(),
        "{devices}"
    );
    let plain = json(&["devices", "--json", "--disable", "f16,subgroups,dot"]);
    assert_eq!(plain["devices"][0]["path"], "plain");
    let ops = json(&["ops", "--filter", "rms_norm", "--json"]);
    assert_eq!(ops["failed"], 0, "{ops}");
    assert!(
        ops["cases"]
            .as_array()
            .is_some_and(|cases| cases.iter().all(|c| c["name"].as_str().is_some_and(|n| n.contains("rms_norm"))))
    );
    common::fail(&run(&["ops", "--filter", "no such case"]), 1);
}

/// A checkpoint like those in LLaMA-2's repositories: a SentencePiece model without tokenizer.json.
#[test]
fn a_bare_sentencepiece_model_is_enough() {
    let directory = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(model("llama2_mha")).expect("a fixture").flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().contains("token") {
            std::fs::copy(entry.path(), directory.path().join(name)).expect("a copy");
        }
    }
    for name in ["tokenizer.model", "tokenizer_config.json"] {
        std::fs::copy(common::fixtures("sentencepiece").join(name), directory.path().join(name)).expect("a copy");
    }
    let place = directory.path().to_str().expect("a path");
    let source = "السلام عليكم، كَيْفَ الحال؟ ١٢٣ 😀";
    let ids = succeed(&run(&["tokenize", source, "--model", place]));
    assert_eq!(succeed(&run_with_input(&["tokenize", "--decode", "--model", place], &ids)).trim(), source);
    let answer = json(&[
        "generate",
        "مرحبا",
        "--max-tokens",
        "8",
        "--temperature",
        "0",
        "--ignore-eos",
        "--json",
        "--model",
        place,
    ]);
    assert_eq!(answer["ids"].as_array().expect("ids").len(), 8);
    let chat = json(&[
        "generate",
        "مرحبا",
        "--chat",
        "--chat-template",
        "llama2",
        "--max-tokens",
        "4",
        "--json",
        "--model",
        place,
    ]);
    assert!(chat["usage"]["prompt_tokens"].as_u64() > answer["usage"]["prompt_tokens"].as_u64(), "{chat}");
}

#[test]
fn calibration_guides_quantization_and_other_models_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (model, other) = (model("llama3_k256").display().to_string(), model("qwen2_bias").display().to_string());
    let file = fixtures("expected").join("ppl_text.txt").display().to_string();
    let made: Value = serde_json::from_str(&succeed(&run(&[
        "imatrix",
        "--model",
        &model,
        "--file",
        &file,
        "--output",
        &path("im"),
        "--json",
    ])))
    .expect("JSON");
    assert!(made["tokens"].as_u64() > Some(50) && made["matrices"] == 8, "{made}");
    let quantize = |model: &str, out: &str, more: &[&str]| {
        run(&[&["quantize", model, &path(out), "--format", "q4_0", "--json"], more].concat())
    };
    let blind: Value = serde_json::from_str(&succeed(&quantize(&model, "blind", &[]))).expect("JSON");
    let output = quantize(&model, "guided", &["--imatrix", &path("im")]);
    let guided: Value = serde_json::from_str(&succeed(&output)).expect("JSON");
    // The embedding is not the output head here, so that it has no importance.
    assert_eq!((guided["weighed_by_imatrix"].as_u64(), blind["weighed_by_imatrix"].is_null()), (Some(8), true));
    assert!(text(&output.stderr).contains("model.embed_tokens.weight"), "{}", text(&output.stderr));
    let error = |report: &Value| {
        report["tensors"].as_array().expect("tensors").iter().filter_map(|t| t["relative_error"].as_f64()).sum::<f64>()
    };
    assert!(error(&guided) > error(&blind), "errors move to where they count less, so that all alike they are more");
    let message = fail(&quantize(&other, "other", &["--imatrix", &path("im")]), 1);
    assert!(message.contains("--imatrix") && !folder.path().join("other").exists(), "{message}");
    let perplexity = |more: &[&str]| run(&[&["perplexity", &file, "--model", &model, "--json"], more].concat());
    fail(&perplexity(&["--imatrix", &path("im")]), 2);
    succeed(&perplexity(&["--imatrix", &path("im"), "--quantize", "q4_0"]));
}

#[test]
fn layers_go_to_the_devices_that_are_named() {
    let model = model("llama3_gqa").display().to_string();
    let flags = ["generate", "مرحبا", "--model", &model, "--temperature", "0", "--max-tokens", "6", "--ignore-eos"];
    let ask = |more: &[&str]| finish(bayan().env_remove("BAYAN_DEVICE").args(flags).args(more));
    let alone = succeed(&ask(&["--device", "0"]));
    let output = ask(&["--devices", "0,0", "--tensor-split", "1,2"]);
    let note = text(&output.stderr);
    assert!(
        note.contains("split over 2 devices") && note.contains("layers 0 to 0") && note.contains("layers 1 to 2"),
        "{note}"
    );
    assert_eq!(succeed(&output), alone);
    assert!(fail(&ask(&["--devices", "0,0", "--tensor-split", "1"]), 1).contains("expected 2 numbers"));
    assert!(fail(&ask(&["--devices", "0,no such device"]), 1).contains("no such device"));
    fail(&ask(&["--devices", "0", "--device", "0"]), 2);
}

#[test]
fn lines_that_are_refused_are_named_and_others_answered() {
    let place = place();
    let flags =
        ["generate", "--temperature", "0", "--max-tokens", "3", "--context", "64", "--lines", "--model", &place];
    let lines = format!("مرحبا\n\n{}\nكيف حالك\n", "السلام عليكم ".repeat(60));
    let output = run_with_input(&flags, &lines);
    assert_eq!(output.status.code(), Some(1));
    let problem = text(&output.stderr);
    assert!(problem.contains("line 3") && problem.contains("--keep-going"), "{problem}");
    let output = run_with_input(&[&flags[..], &["--keep-going"]].concat(), &lines);
    assert_eq!(output.status.code(), Some(1), "a refused line is a failure");
    let answers: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let indexes: Vec<u64> = answers.iter().map(|answer| answer["index"].as_u64().expect("an index")).collect();
    assert_eq!(indexes, [0, 2, 3], "the index of a line in the input");
    assert!(answers[0]["text"].is_string() && answers[2]["text"].is_string());
    assert!(answers[1]["error"].as_str().expect("an error").contains("64"), "{}", answers[1]);
}

#[test]
fn minus_one_and_empty_variables_mean_the_default() {
    let place = place();
    let flags =
        ["generate", "مرحبا", "-n", "-1", "--seed", "-1", "--context", "24", "--ignore-eos", "--json", "--model"];
    let answer = json(&[&flags[..], &[&place]].concat());
    assert_eq!(answer["finish_reason"], "context_full");
    let mut command = common::bayan();
    command.args(["generate", "مرحبا", "-n", "2", "--ignore-eos", "--json", "--model", &place]);
    command.env("BAYAN_SEED", "").env("BAYAN_TEMPERATURE", "").env("BAYAN_MAX_TOKENS", "").env("BAYAN_SYSTEM", "");
    succeed(&common::finish(&mut command));
    fail(&run(&["generate", "مرحبا", "-n", "0", "--model", &place]), 2);
    fail(&run(&["generate", "مرحبا", "--seed", "-2", "--model", &place]), 2);
}

#[test]
fn tokens_are_shown_as_text_and_parts_of_characters_as_bytes() {
    let place = place();
    let shown = |source: &str| {
        let lines = succeed(&run(&["tokenize", "--tokens", source, "--model", &place]));
        lines.lines().map(|line| line.get(9..).expect("a token").to_string()).collect::<Vec<String>>()
    };
    let arabic = shown("السلام عليكم");
    assert!(!arabic.concat().contains('Ø') && arabic.concat().replace(' ', "").contains("السلام"), "{arabic:?}");
    let parts = shown("\u{10ABC}").concat();
    assert_eq!(parts.replace("<0x", "").replace('>', ""), "F090AABC", "a character that no vocabulary has whole");
    assert!(shown("a\nb").concat().contains("\\n"));
}

#[test]
fn content_parts_and_a_system_text_without_a_role_are_rendered() {
    let gemma = model("gemma2_softcap").display().to_string();
    let parts = r#"[{"role":"user","content":[{"type":"text","text":"مرحبا "},{"type":"text","text":"بك"}]}]"#;
    for place in [&place(), &gemma] {
        let prompt = succeed(&run(&["template", parts, "--model", place]));
        assert!(prompt.contains("مرحبا بك") && !prompt.contains("'type'"), "{prompt}");
    }
    let image = r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]"#;
    let problem = fail(&run(&["template", image, "--model", &gemma]), 1);
    assert!(problem.contains("message 0, part 0") && problem.contains("image_url"), "{problem}");
    let system = r#"[{"role":"system","content":"كن موجزا"},{"role":"user","content":"مرحبا"}]"#;
    let output = run(&["template", system, "--model", &gemma]);
    assert!(succeed(&output).contains("<start_of_turn>user\nكن موجزا\n\nمرحبا<end_of_turn>"));
    assert!(text(&output.stderr).contains("no system role"), "{}", text(&output.stderr));
    let flags = ["generate", "--chat", "--system", "كن موجزا", "-n", "2", "مرحبا", "--model", &gemma];
    let output = run(&flags);
    succeed(&output);
    assert_eq!(text(&output.stderr).matches("no system role").count(), 1);
}

#[test]
fn a_message_is_retried_edited_and_settings_changed() {
    let place = place();
    let flags = ["chat", "--seed", "5", "--max-tokens", "4", "--stop", "\n", "--model", &place];
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("c.json").display().to_string();
    let input = format!("مرحبا\n/retry\n/edit من أنت؟\n/set temperature 0\n/system كن موجزا\n/save {file}\n/reset\n");
    let output = run_with_input(&flags, &input);
    let (answers, notes) = (succeed(&output), text(&output.stderr));
    assert_eq!(answers.lines().count(), 3, "{answers}");
    for said in ["temperature 0,", "seed 6", "system message set", "messages deleted: 2; the system message is kept"] {
        assert!(notes.contains(said), "{said}: {notes}");
    }
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("a file")).expect("JSON");
    let messages: Vec<&str> =
        saved["messages"].as_array().expect("messages").iter().filter_map(|m| m["role"].as_str()).collect();
    assert_eq!(messages, ["system", "user", "assistant"]);
    assert_eq!(saved["messages"][1]["content"], "من أنت؟");
    let problem = fail(&run_with_input(&flags, "/retry\n"), 1);
    assert!(problem.contains("expected a message"), "{problem}");
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = succeed(&run(&["completions", shell]));
        assert!(script.contains("finetune") && script.contains("keep-going"), "{shell}");
    }
    assert!(succeed(&run(&["man"])).contains(".TH bayan"));
    let folder = tempfile::tempdir().expect("a folder");
    succeed(&run(&["man", folder.path().to_str().expect("a path")]));
    let pages: Vec<String> = std::fs::read_dir(folder.path())
        .expect("a folder")
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    assert!(pages.contains(&"bayan-generate.1".to_string()) && pages.len() > 15, "{pages:?}");
}

#[test]
fn caches_are_shown_and_cleared() {
    let place = tempfile::tempdir().expect("a folder");
    let at = |name: &str| place.path().join(name);
    let (tuning, history) = (at("cache/bayan/tuning"), at("state/bayan/chat_history"));
    let (model, data) = (at("hub/models--a--b/blobs"), at("hub/datasets--a--b/blobs"));
    for folder in [&tuning, history.parent().expect("a folder"), &model, &data] {
        fs::create_dir_all(folder).expect("a folder");
    }
    for (file, size) in
        [(tuning.join("1.json"), 10), (history.clone(), 20), (model.join("x"), 30), (data.join("y"), 40)]
    {
        fs::write(file, vec![b'x'; size]).expect("a file");
    }
    let caches = |arguments: &[&str]| {
        let mut command = bayan();
        command.args(["caches", "--json"]).args(arguments);
        command.env("XDG_CACHE_HOME", at("cache")).env("XDG_STATE_HOME", at("state"));
        let answer: Value =
            serde_json::from_str(&succeed(&finish(command.env("HF_HOME", place.path())))).expect("JSON");
        let caches = answer["caches"].as_array().expect("caches").clone();
        caches.iter().map(|cache| (cache["bytes"].as_u64(), cache["freed_bytes"].as_u64())).collect::<Vec<_>>()
    };
    assert_eq!(caches(&[]), [(Some(10), Some(0)), (Some(20), Some(0)), (Some(30), Some(0))]);
    assert_eq!(caches(&["--clear", "history,hub"]), [(Some(10), Some(0)), (Some(0), Some(20)), (Some(0), Some(30))]);
    assert!(tuning.join("1.json").exists() && !history.exists() && !at("hub/models--a--b").exists());
    assert!(data.join("y").exists(), "a data set of another program was deleted");
    fail(&run(&["caches", "--clear", "everything"]), 2);
}

#[test]
fn verbose_says_what_is_loaded_and_compiled() {
    let place = model("llama3_gqa").display().to_string();
    let errors = |flags: &[&str], variable: Option<&str>| {
        let mut command = bayan();
        command.args(["generate", "a", "-n", "1", "--model", &place]).args(flags).env_remove("RUST_LOG");
        if let Some(value) = variable {
            command.env("RUST_LOG", value);
        }
        let output = finish(&mut command);
        succeed(&output);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let quiet = errors(&[], None);
    assert!(!quiet.contains("loading") && !quiet.contains("compiling"), "{quiet}");
    let some = errors(&["-v"], None);
    assert!(some.contains("device: ") && some.contains("llama3_gqa: llama, ") && !some.contains("compiling"), "{some}");
    for more in [errors(&["-vv"], None), errors(&[], Some("bayan_gpu=debug"))] {
        assert!(more.contains("compiling kernel"), "{more}");
    }
    let wrong = errors(&[], Some("bayan=loud"));
    assert!(wrong.contains("RUST_LOG=bayan=loud has no effect"), "{wrong}");
}

#[test]
fn proposed_tokens_change_no_answer_and_are_counted() {
    let place = model("llama3_gqa").display().to_string();
    let flags =
        ["generate", "مرحبا مرحبا مرحبا", "-n", "30", "--seed", "7", "--ignore-eos", "--json", "--device", "cpu"];
    let flags = [&flags, &["--model", &place][..]].concat();
    let plain = json(&flags);
    let details = |answer: &Value| answer["usage"]["completion_tokens_details"].clone();
    assert_eq!(details(&plain), serde_json::json!({"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}));
    for more in [&["--lookup", "3"][..], &["--draft-model", &place, "--draft-tokens", "5"]] {
        let found = json(&[&flags, more].concat());
        assert_eq!((&found["text"], &found["ids"]), (&plain["text"], &plain["ids"]), "{more:?}");
        let counts = details(&found);
        let [accepted, rejected] =
            ["accepted", "rejected"].map(|name| counts[format!("{name}_prediction_tokens")].as_u64());
        assert!(accepted.zip(rejected).is_some_and(|(a, b)| a + b > 0), "{more:?}: {counts}");
    }
    let other = model("qwen3_qknorm").display().to_string();
    let error = fail(&run(&[&flags, &["--draft-model", &other][..]].concat()), 1);
    assert!(error.contains("--draft-model") && error.contains("another tokenizer"), "{error}");
    fail(&run(&[&flags, &["--lookup", "3", "--draft-model", &place][..]].concat()), 2);
    fail(&run(&[&flags, &["--lookup", "0"][..]].concat()), 2);
    fail(&run(&[&flags, &["--draft-tokens", "3"][..]].concat()), 2);
    let recurrent = model("lfm2").display().to_string();
    let flags = ["generate", "a", "--device", "cpu", "--lookup", "3", "--model", &recurrent];
    assert!(fail(&run(&flags), 1).contains("recurrent layers"));
    // A session counts, too.
    let session = ["chat", "--device", "cpu", "--lookup", "4", "--temperature", "0", "-n", "40", "--ignore-eos"];
    let said = run_with_input(&[&session, &["--model", &place][..]].concat(), "سؤال سؤال سؤال\n/stats\n");
    assert!(text(&said.stderr).contains("proposed tokens: "), "{}", text(&said.stderr));
}
