//! Bad input ends with one clear message, the right exit code, and no panic.

mod common;

use std::fs;
use std::path::Path;

use common::{bayan, copy_of, fail, finish, model, run, run_with_input, succeed, text};

fn generate(directory: &Path, flags: &[&str]) -> std::process::Output {
    let directory = directory.to_str().expect("a path in UTF-8");
    run(&[&["generate", "مرحبا", "--max-tokens", "2", "--model", directory], flags].concat())
}

/// Damages a copy of a checkpoint and expects generation to fail with these words.
fn broken(words: &[&str], damage: impl Fn(&Path)) {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = copy_of("llama3_gqa", folder.path());
    damage(&directory);
    let message = fail(&generate(&directory, &[]), 1);
    assert!(
        message.starts_with("error: ") && words.iter().all(|word| message.contains(word)),
        "expected {words:?} in: {message}"
    );
}

fn weights(directory: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(directory).expect("the copy").flatten().map(|e| e.path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    files.remove(0)
}

fn edit_config(directory: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let file = directory.join("config.json");
    let mut config = serde_json::from_str(&fs::read_to_string(&file).expect("config.json")).expect("JSON");
    edit(&mut config);
    fs::write(&file, config.to_string()).expect("a file");
}

#[test]
fn missing_files() {
    broken(&["config.json"], |d| fs::remove_file(d.join("config.json")).expect("removed"));
    broken(&["tokenizer"], |d| fs::remove_file(d.join("tokenizer.json")).expect("removed"));
    broken(&["safetensors"], |d| fs::remove_file(weights(d)).expect("removed"));
}

#[test]
fn damaged_files() {
    broken(&["config.json", "JSON"], |d| fs::write(d.join("config.json"), "{").expect("written"));
    broken(&["tokenizer.json"], |d| fs::write(d.join("tokenizer.json"), "{}").expect("written"));
    broken(&["safetensors"], |d| {
        let bytes = fs::read(weights(d)).expect("weights");
        fs::write(weights(d), &bytes[..bytes.len() / 2]).expect("written");
    });
    broken(&["safetensors"], |d| fs::write(weights(d), [0xff; 64]).expect("written"));
    broken(&["safetensors"], |d| fs::write(weights(d), []).expect("written"));
}

#[test]
fn weights_that_are_not_numbers() {
    broken(&["finite"], |d| {
        let mut bytes = fs::read(weights(d)).expect("weights");
        let half = bytes.len() / 2 / 4 * 4;
        // All bits set is NaN in f32, f16 and bf16.
        bytes[half..half + 4096].fill(0xff);
        fs::write(weights(d), bytes).expect("written");
    });
}

#[test]
fn configurations_that_do_not_fit() {
    broken(&["wings", "supported"], |d| edit_config(d, |c| c["model_type"] = "wings".into()));
    broken(&["hidden_size"], |d| edit_config(d, |c| c["hidden_size"] = 0.into()));
    broken(&["expected", "got"], |d| edit_config(d, |c| c["intermediate_size"] = 96.into()));
    broken(&["no tensor named", "model.layers."], |d| edit_config(d, |c| c["num_hidden_layers"] = 51.into()));
    broken(&["vocab_size"], |d| edit_config(d, |c| c["vocab_size"] = "many".into()));
    broken(&["expected", "got"], |d| edit_config(d, |c| c["vocab_size"] = 2_000_000_000.into()));
}

#[test]
fn places_without_a_checkpoint() {
    let message = |place: &str| fail(&run(&["generate", "a", "--model", place]), 1);
    assert!(message("no/such").contains("download"), "{}", message("no/such"));
    assert!(message("/no/such/place").contains("/no/such/place"));
    assert!(message(env!("CARGO_MANIFEST_DIR")).contains("safetensors"));
    let folder = tempfile::tempdir().expect("a folder");
    let gguf = folder.path().join("cut.gguf");
    let bytes = std::fs::read(common::fixtures("gguf").join("qwen2_bias-Q4_0.gguf")).expect("a fixture");
    std::fs::write(&gguf, &bytes[..bytes.len() / 2]).expect("a file");
    assert!(message(gguf.to_str().expect("a path")).contains("truncated"));
}

#[test]
fn prompts_and_contexts_that_do_not_fit() {
    let directory = model("llama3_gqa");
    let message = fail(&generate(&directory, &["--context", "2"]), 1);
    assert!(message.contains("--context") && message.contains("the context holds 2"), "{message}");
    let message = fail(&generate(&directory, &["--logit-bias", "99999999+1"]), 1);
    assert!(message.contains("99999999"), "{message}");
    let message = fail(&generate(&directory, &["--chat", "--chat-template", "/no/such.jinja"]), 1);
    assert!(message.contains("/no/such.jinja"), "{message}");
    // With a tokenizer that adds no token, an empty text leaves nothing to continue.
    let plain = model("qwen2_bias");
    let message = fail(&run_with_input(&["generate", "--model", plain.to_str().expect("a path")], ""), 1);
    assert!(message.contains("the prompt is empty"), "{message}");
}

#[test]
fn wrong_usage_is_code_2() {
    let wrong: [&[&str]; 12] = [
        &[],
        &["fly"],
        &["generate", "--top-p", "2"],
        &["generate", "--context", "1"],
        &["generate", "--context", "99999999999"],
        &["generate", "--quantize", "q3"],
        &["generate", "--disable", "everything"],
        &["generate", "--cache", "f8"],
        &["generate", "a", "--file", "b"],
        &["bench", "--repetitions", "0"],
        &["quantize", "only-one", "--format", "q4_0"],
        &["conformance"],
    ];
    for arguments in wrong {
        fail(&run(arguments), 2);
    }
}

#[test]
fn every_subcommand_has_help() {
    for command in [
        "chat",
        "generate",
        "tokenize",
        "template",
        "quantize",
        "inspect",
        "caches",
        "devices",
        "bench",
        "ops",
        "conformance",
    ] {
        let help = succeed(&run(&[command, "--help"]));
        assert!(help.contains("Usage:") && help.contains(command), "{help}");
    }
}

#[test]
fn no_device() {
    let directory = model("llama3_gqa");
    let place = directory.to_str().expect("a path");
    // The Vulkan loader finds no driver with these; other backends of the machine remain visible.
    let without_drivers = |command: &mut std::process::Command, arguments: &[&str]| {
        command.args(arguments).env("VK_ICD_FILENAMES", "/nonexistent").env("VK_DRIVER_FILES", "/nonexistent");
        finish(command)
    };
    for arguments in [&["generate", "a", "--model", place][..], &["ops", "--filter", "add"]] {
        let output = without_drivers(&mut bayan(), arguments);
        if cfg!(target_os = "linux") {
            let message = fail(&output, 1);
            assert!(message.contains("no GPU was found") && message.contains("mesa-vulkan-drivers"), "{message}");
        }
    }
    assert!(succeed(&without_drivers(&mut bayan(), &["devices"])).contains("cpu: "));
    // Unless a device is named, the CPU runs the model, and the program says so once.
    if cfg!(target_os = "linux") {
        let flags = ["generate", "a", "--model", place, "--max-tokens", "2", "--threads", "2"];
        let output = without_drivers(bayan().env_remove("BAYAN_DEVICE"), &flags);
        let note = text(&output.stderr);
        succeed(&output);
        assert!(note.matches("runs on the CPU").count() == 1 && note.contains("2 threads"), "{note}");
    }
    let message = fail(&run(&["generate", "a", "--model", place, "--device", "no such device"]), 1);
    assert!(message.contains("no such device"), "{message}");
}

#[test]
fn what_the_cpu_does_not_do() {
    let directory = model("llama3_gqa");
    let place = directory.to_str().expect("a path");
    let message = fail(&run(&["bench", "--train", "--model", place, "--device", "cpu"]), 1);
    assert!(message.contains("training runs there only"), "{message}");
    let message = fail(&run(&["generate", "a", "--model", place, "--device", "cpu", "--gpu-layers", "1"]), 1);
    assert!(message.contains("leave `--gpu-layers` out"), "{message}");
    fail(&run(&["generate", "a", "--model", place, "--device", "cpu", "--threads", "0"]), 2);
}

#[test]
fn a_failed_quantization_leaves_what_was_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = copy_of("llama3_gqa", folder.path());
    let (from, out) = (directory.to_str().expect("a path"), folder.path().join("out"));
    let to = out.to_str().expect("a path");
    succeed(&run(&["quantize", from, to, "--format", "q8_0"]));
    let before = fs::read(out.join("model.safetensors")).expect("a checkpoint");
    let message = fail(&run(&["quantize", from, to, "--format", "q4_0"]), 1);
    assert!(message.contains("--overwrite"), "{message}");
    let mut bytes = fs::read(weights(&directory)).expect("weights");
    let half = bytes.len() / 2 / 4 * 4;
    bytes[half..half + 4096].fill(0xff);
    fs::write(weights(&directory), bytes).expect("written");
    fail(&run(&["quantize", from, to, "--format", "q4_0", "--overwrite"]), 1);
    assert_eq!(fs::read(out.join("model.safetensors")).expect("a checkpoint"), before);
    let left: Vec<_> = fs::read_dir(folder.path()).expect("the folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// Requests that no correct program sends: the file is refused as a whole, or each request is answered with its error.
#[test]
fn conformance_requests_from_strangers() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("requests.json");
    let ask = |text: &str| {
        fs::write(&file, text).expect("a file");
        run(&["conformance", "--request", file.to_str().expect("a path in UTF-8")])
    };
    let directory = model("qwen3_qknorm");
    let whole = |requests: &str| format!(r#"{{"version": 1, "model": {directory:?}, "requests": [{requests}]}}"#);
    let file_errors = [
        "",
        "[]",
        "{\"version\": 1}",
        &"[".repeat(100_000),
        &whole(r#"{"id": 1, "op": "nll", "ids": [-1]}"#),
        &whole("").replace(": 1,", ": 7,"),
    ];
    for text in file_errors {
        fail(&ask(text), 1);
    }
    // Each request with a part of its answer.
    let requests = [
        (r#"{"op": "logits", "ids": []"#, "empty"),
        (r#"{"op": "logits", "ids": [4294967295]"#, "outside the vocabulary"),
        (r#"{"op": "nll", "ids": [1]"#, "[]"),
        (r#"{"op": "generate", "ids": [], "max_new_tokens": 1"#, "empty"),
        (r#"{"op": "generate", "ids": [1], "max_new_tokens": 18446744073709551615"#, "--context"),
        (r#"{"op": "decode", "ids": [4294967295, 0]"#, "text"),
        (r#"{"op": "stream", "ids": [4294967295]"#, "null"),
        (r#"{"op": "chat", "messages": [7]"#, "text"),
        (r#"{"op": "lora_grads", "ids": {}"#, "`adapter`"),
        (r#"{"op": "fly", "to": "the moon""#, "unsupported"),
    ];
    for (id, (request, part)) in requests.iter().enumerate() {
        let answer = succeed(&ask(&whole(&format!("{request}, \"id\": {id}}}"))));
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        let response = &answer["responses"][0];
        assert_eq!(response["id"], id);
        assert!(response.to_string().contains(part), "{request}: {response}");
    }
}
