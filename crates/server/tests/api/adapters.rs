//! Adapters as model names: loaded and unloaded, beside each other, with cached prefixes of their own.

use std::path::PathBuf;

use bayan_server::ServerOptions;
use serde_json::{Value, json};

use crate::{Running, Served, serve, with};

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/lora/llama3_r8_all"))
}

fn adapted(keys: &[&str]) -> Running {
    let options = ServerOptions {
        model: "bayan".into(),
        adapters: vec![("tuned".into(), folder().join("adapter_final"))],
        adapter_dir: Some(folder()),
        keys: keys.iter().map(|key| key.to_string()).collect(),
        ..Default::default()
    };
    serve(Served::Fixture("llama3_gqa", None), options)
}

fn ask(model: &str) -> Value {
    // Long enough that a prefix is worth keeping.
    let prompt: Vec<u32> = (3..60).collect();
    json!({"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0})
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

#[test]
fn an_adapter_is_a_model_and_has_a_cache_of_its_own() {
    let server = adapted(&[]);
    let names = |server: &Running| -> Vec<String> {
        let list = server.get("/v1/models").good()["data"].as_array().unwrap().clone();
        list.iter().map(|model| model["id"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(names(&server), ["bayan", "tuned"]);
    assert_eq!(server.get("/v1/models/tuned").good()["parent"], "bayan");
    let base = server.complete(ask("bayan")).good();
    let tuned = server.complete(ask("tuned")).good();
    assert_eq!((&tuned["model"], cached(&base), cached(&tuned)), (&json!("tuned"), 0, 0));
    assert_ne!(base["choices"][0]["text"], tuned["choices"][0]["text"]);
    // Each finds its own prefix, and the answers stay the same, also together.
    std::thread::scope(|scope| {
        let both = [("bayan", &base), ("tuned", &tuned)];
        let both = both.map(|(name, first)| (scope.spawn(|| server.complete(ask(name)).good()), first));
        for (again, first) in both {
            let again = again.join().unwrap();
            assert_eq!(again["choices"][0]["text"], first["choices"][0]["text"]);
            assert!(cached(&again) > 0, "{again}");
        }
    });
    // Each is counted by its name.
    let count = |name: &str, model: &str| server.metric(&format!("bayan_model_{name}{{model=\"{model}\"}}"));
    for (name, answer) in [("bayan", &base), ("tuned", &tuned)] {
        assert_eq!(count("answers_total", name), 2.0);
        assert_eq!(count("prompt_tokens_total", name), 2.0 * answer["usage"]["prompt_tokens"].as_f64().unwrap());
        assert_eq!(count("time_to_first_token_seconds_count", name), 2.0);
        assert_eq!((count("requests_running", name), count("requests_queued", name)), (0.0, 0.0));
    }
    // Loaded under another name, unloaded, and gone.
    let load =
        |name: &str, path: &str| server.post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": path}));
    assert_eq!(load("first", "adapter_init").status, 200);
    assert_eq!(names(&server), ["bayan", "first", "tuned"]);
    assert_eq!(cached(&server.complete(ask("first")).good()), 0);
    for (name, path, param) in [
        ("first", "adapter_init", "lora_name"),
        ("bayan", "adapter_init", "lora_name"),
        ("a b", "adapter_init", "lora_name"),
        ("x", "../../../models/llama3_gqa", "lora_path"),
        ("x", "/etc", "lora_path"),
        ("x", "nothing", "lora_path"),
    ] {
        assert_eq!(load(name, path).error(400)["param"], param, "{name} {path}");
    }
    let unload = |name: &str| server.post("/v1/unload_lora_adapter", &json!({"lora_name": name}));
    assert_eq!((count("answers_total", "first"), count("answers_total", "tuned")), (1.0, 2.0));
    assert_eq!(unload("first").status, 200);
    assert!(!server.get("/metrics").text().contains("model=\"first\""), "an unloaded name has no metrics");
    unload("first").error(404);
    server.complete(ask("first")).error(404);
    assert_eq!(server.complete(ask("tuned")).good()["choices"][0]["text"], tuned["choices"][0]["text"]);
}

#[test]
fn a_cached_prefix_is_found_with_its_key_and_adapter_only() {
    let server = adapted(&["one", "two"]);
    let ask_as = |key: &str, model: &str| {
        let body = ask(model).to_string();
        cached(
            &server
                .ask("/v1/completions", Some(body.as_bytes()), &[("authorization", &format!("Bearer {key}"))])
                .good(),
        )
    };
    assert_eq!(ask_as("one", "tuned"), 0);
    assert!(ask_as("one", "tuned") > 0, "the same key hits");
    assert_eq!(ask_as("two", "tuned"), 0, "another key misses");
    assert_eq!(ask_as("one", "bayan"), 0, "the same key without the adapter misses");
}

#[test]
fn adapters_are_not_loaded_without_a_directory_for_them() {
    let server = serve(Served::Embedded, ServerOptions { model: "bayan".into(), ..Default::default() });
    let body = json!({"lora_name": "x", "lora_path": "/"});
    server.post("/v1/load_lora_adapter", &body).error(403);
    server.post("/v1/unload_lora_adapter", &with(body, json!({}))).error(403);
}
