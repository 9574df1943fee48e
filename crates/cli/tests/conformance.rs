//! Compares `bayan conformance` with transformers' results for the fixtures, on every code path of the device.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use bayan_weights::FORMATS;
use common::{bayan, every_model, finish, fixtures, model, succeed};
use serde_json::{Value, json};

/// Limits of one path, as the reference scripts set them: NMSE of logits, the gap between the two best logits below
/// which greedy decoding may choose either, and the difference of the mean negative log-probability.
#[derive(Clone, Copy)]
struct Limits {
    nmse: f64,
    gap: f64,
    nll: f64,
}

const F32: Limits = Limits { nmse: 1e-6, gap: 2e-3, nll: 1e-4 };
const F16: Limits = Limits { nmse: 1e-4, gap: 0.15, nll: 2e-2 };
const Q8: Limits = Limits { nmse: 1e-3, gap: 0.5, nll: 0.1 };
const Q4: Limits = Limits { nmse: 0.1, gap: 4.0, nll: 1.0 };

/// The reference results of one model.
struct Reference {
    name: String,
    expected: Value,
    prompts: BTreeMap<String, Vec<u32>>,
    tensors: Vec<u8>,
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .expect("JSON")
}

fn reference(name: &str) -> Reference {
    let directory = fixtures("expected").join(name);
    Reference {
        name: name.to_string(),
        expected: read_json(&directory.join("expected.json")),
        prompts: serde_json::from_value(read_json(&directory.join("prompts.json"))).expect("lists of ids"),
        tensors: std::fs::read(directory.join("expected.safetensors")).expect("the reference's tensors"),
    }
}

impl Reference {
    fn floats(&self, tensor: &str) -> Vec<f32> {
        let file = safetensors::SafeTensors::deserialize(&self.tensors).expect("safetensors");
        let view = file.tensor(tensor).unwrap_or_else(|e| panic!("{tensor}: {e}"));
        assert_eq!(view.dtype(), safetensors::Dtype::F32, "{tensor}");
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    fn integers(&self, tensor: &str) -> Vec<u32> {
        let file = safetensors::SafeTensors::deserialize(&self.tensors).expect("safetensors");
        let view = file.tensor(tensor).unwrap_or_else(|e| panic!("{tensor}: {e}"));
        let width = if view.dtype() == safetensors::Dtype::I64 { 8 } else { 4 };
        view.data().chunks_exact(width).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// The limits, widened where transformers' own half precision or plain rounding is worse on this model.
    fn widen(&self, limits: Limits, by: &str, factor: f64) -> Limits {
        let own = self.expected["reference_errors"][by]["nmse"].as_f64().unwrap_or(0.0);
        Limits { nmse: limits.nmse.max(factor * own), ..limits }
    }
}

fn ask(directory: &Path, requests: &[Value], flags: &[&str]) -> BTreeMap<String, Value> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("request.json");
    std::fs::write(&file, json!({"version": 1, "model": directory, "adapter": null, "requests": requests}).to_string())
        .expect("a file");
    let mut command = bayan();
    // Mesa's software driver spends most of a run on compiling kernels; unoptimised, it takes a quarter less.
    command.env("GALLIVM_PERF", "nopt").arg("conformance").arg("--request").arg(&file).args(flags);
    let output = finish(&mut command);
    let answer: Value = serde_json::from_str(&succeed(&output)).expect("one line of JSON");
    let responses = answer["responses"].as_array().expect("responses").clone();
    assert_eq!(responses.len(), requests.len());
    responses.into_iter().map(|response| (response["id"].as_str().expect("an id").to_string(), response)).collect()
}

fn nmse(reference: &[f32], found: &[f32]) -> f64 {
    assert_eq!(reference.len(), found.len());
    let error: f64 = reference.iter().zip(found).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let square: f64 = reference.iter().map(|a| f64::from(*a).powi(2)).sum();
    error / square
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value, what: &str) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{what}: {e}: {value}"))
}

fn logits_requests(reference: &Reference) -> Vec<Value> {
    let request = |(name, ids): (&String, &Vec<u32>)| json!({"id": format!("logits.{name}"), "op": "logits", "ids": ids, "top_k": 20, "positions": "all", "full_last": true});
    reference.prompts.iter().map(request).collect()
}

fn text_requests(reference: &Reference) -> Vec<Value> {
    let mut requests = Vec::new();
    for (name, text) in reference.expected["greedy"].as_object().expect("greedy texts") {
        let count = text["ids"].as_array().expect("ids").len();
        let ids = &reference.prompts[name];
        requests.push(json!({"id": format!("greedy.{name}"), "op": "generate", "ids": ids, "max_new_tokens": count, "greedy": true, "ignore_eos": true}));
    }
    requests.push(json!({"id": "nll", "op": "nll", "ids": reference.integers("ppl.ids")}));
    requests
}

/// Checks the logits after every token of every prompt.
fn hold_logits(reference: &Reference, answers: &BTreeMap<String, Value>, limits: Limits, flags: &[&str]) {
    for (name, ids) in &reference.prompts {
        let answer = &answers[&format!("logits.{name}")];
        let what = format!("{} {name} {flags:?}", reference.name);
        let found: Vec<f32> = numbers(&answer["last_logits"], &what);
        let error = nmse(&reference.floats(&format!("{name}.last_logits")), &found);
        assert!(error <= limits.nmse, "{what}: NMSE {error:.2e}, at most {:.2e}", limits.nmse);
        hold_all_positions(reference, name, ids.len(), &answer["top"], limits, &what);
    }
}

/// Checks greedy text and log-probabilities.
fn hold_text(reference: &Reference, answers: &BTreeMap<String, Value>, limits: Limits, flags: &[&str]) {
    for (name, text) in reference.expected["greedy"].as_object().expect("greedy texts") {
        let what = format!("{} greedy {name} {flags:?}", reference.name);
        let wanted: Vec<u32> = numbers(&text["ids"], &what);
        let found: Vec<u32> = numbers(&answers[&format!("greedy.{name}")]["ids"], &what);
        assert_eq!(found.len(), wanted.len(), "{what}");
        if let Some(first) = (0..wanted.len()).find(|&i| wanted[i] != found[i]) {
            let gap = text["top1_gaps"][first].as_f64().expect("a gap");
            assert!(gap <= limits.gap, "{what}: token {first} differs where the best two logits are {gap} apart");
        }
    }
    let what = format!("{} nll {flags:?}", reference.name);
    let found: Vec<f64> = numbers(&answers["nll"]["nll"], &what);
    let mean = found.iter().sum::<f64>() / found.len() as f64;
    let wanted = reference.expected["ppl"]["mean_nll"].as_f64().expect("a mean");
    assert!((mean - wanted).abs() <= limits.nll, "{what}: {mean}, expected {wanted}");
}

/// Checks the ten best logits after every token.
fn hold_all_positions(reference: &Reference, prompt: &str, positions: usize, top: &Value, limits: Limits, what: &str) {
    let ids = reference.integers(&format!("{prompt}.top_ids"));
    let logits = reference.floats(&format!("{prompt}.top_logits"));
    let top: Vec<Vec<(u32, f32)>> = numbers(top, what);
    assert_eq!(top.len(), positions, "{what}");
    let width = ids.len() / positions;
    let (mut wanted, mut found) = (Vec::new(), Vec::new());
    for (position, row) in top.iter().enumerate() {
        let range = position * width..(position + 1) * width;
        let (ids, logits) = (&ids[range.clone()], &logits[range]);
        for (id, logit) in ids.iter().zip(logits).take(10) {
            if let Some((_, mine)) = row.iter().find(|(i, _)| i == id) {
                wanted.push(*logit);
                found.push(*mine);
            }
        }
        assert!(
            row[0].0 == ids[0] || f64::from(logits[0] - logits[1]) <= limits.gap,
            "{what}: another best token at position {position}"
        );
    }
    let missing = 1.0 - wanted.len() as f64 / (10 * positions) as f64;
    assert!(missing < 0.02 + 5.0 * limits.nmse.sqrt(), "{what}: {missing} of the reference's best tokens are missing");
    let error = nmse(&wanted, &found);
    assert!(error <= limits.nmse, "{what}: NMSE over all positions {error:.2e}, at most {:.2e}", limits.nmse);
}

/// Models that exist for GGUF's sake and have the architecture of another: enough on the CPU, whose graph is that of
/// every device.
const LIKE_OTHERS: [&str; 4] = ["cohere2_even", "cohere_plain", "gemma4_even", "qwen3_5_even"];

fn hold_all(limits: Limits, flags: &[&str]) {
    let mut models = every_model();
    if !flags.contains(&"cpu") {
        models.retain(|model| !LIKE_OTHERS.contains(&model.as_str()));
    }
    hold_models(&models.iter().map(String::as_str).collect::<Vec<_>>(), limits, flags);
}

fn hold_models(names: &[&str], limits: Limits, flags: &[&str]) {
    for &name in names {
        let reference = reference(name);
        // f16 may be as bad as four times transformers' own f16 on this model.
        let limits = if limits.nmse < F16.nmse { limits } else { reference.widen(limits, "transformers_f16", 4.0) };
        let answers = ask(&model(name), &[logits_requests(&reference), text_requests(&reference)].concat(), flags);
        hold_logits(&reference, &answers, limits, flags);
        hold_text(&reference, &answers, limits, flags);
    }
}

#[test]
fn f32_weights_and_cache() {
    hold_all(F32, &["--quantize", "f32", "--cache", "f32", "--disable", "f16"]);
}

#[test]
fn f32_without_any_feature() {
    hold_all(F32, &["--quantize", "f32", "--cache", "f32", "--disable", "f16,subgroups,dot,unchecked"]);
}

#[test]
fn f32_with_matrices_in_shards() {
    // The vocabulary of the first needs three bindings of this size.
    let names = ["llama3_k256", "llama2_mha", "qwen3_qknorm"];
    hold_models(
        &names,
        F32,
        &["--quantize", "f32", "--cache", "f32", "--disable", "f16", "--max-binding-bytes", "524288"],
    );
}

#[test]
fn as_stored_with_all_features() {
    hold_all(F16, &["--cache", "f16"]);
}

/// The CPU sums in f32, in another order than any GPU.
const CPU: Limits = Limits { nmse: 1e-9, ..F32 };

#[test]
fn cpu_in_f32() {
    hold_all(CPU, &["--device", "cpu", "--quantize", "f32", "--cache", "f32"]);
}

#[test]
fn cpu_as_stored() {
    hold_all(F16, &["--device", "cpu"]);
}

#[test]
fn cpu_in_every_quantized_format() {
    for name in ["llama3_gqa", "qwen2_bias"] {
        let reference = reference(name);
        for format in FORMATS.iter().filter(|format| !format.is_dense()) {
            let limits = if format.bits_per_weight() >= 8.0 { Q8 } else { Q4 };
            let flags = ["--device", "cpu", "--quantize", format.name()];
            hold_text(&reference, &ask(&model(name), &text_requests(&reference), &flags), limits, &flags);
        }
    }
}

/// Random weights amplify a quantizer's rounding until logits are meaningless, so formats are compared with their own
/// dequantized weights; against transformers only greedy text, up to near ties, and log-probabilities are compared.
fn hold_formats(name: &str) {
    // Formats that differ from another one only in how scales are stored: one model is enough.
    let scales_only = |format: &str| matches!(format, "q4_1" | "q5_1") && name != "llama3_gqa";
    for format in FORMATS.iter().filter(|format| !format.is_dense() && !scales_only(format.name())) {
        let limits = if format.bits_per_weight() >= 8.0 { Q8 } else { Q4 };
        let format = format.name();
        let reference = reference(name);
        let folder = tempfile::tempdir().expect("a folder");
        let quantize = |from: &Path, to: &Path, format: &str| {
            succeed(&finish(bayan().arg("quantize").arg(from).arg(to).args(["--format", format])));
        };
        let (planes, dense) = (folder.path().join("planes"), folder.path().join("dense"));
        quantize(&model(name), &planes, format);
        quantize(&planes, &dense, "f32");
        let last = |answers: &BTreeMap<String, Value>, prompt: &str| -> Vec<f32> {
            numbers(&answers[&format!("logits.{prompt}")]["last_logits"], prompt)
        };
        let wanted = ask(&dense, &logits_requests(&reference), &["--cache", "f32", "--device", "cpu"]);
        // The second bound is for int8 activations, where the device supports their dot products.
        for (flags, bound) in
            [(["--disable", "f16,dot"], 1e-8), (["--disable", "f16,dot,subgroups"], 1e-8), (["--disable", ""], Q8.nmse)]
        {
            let found = ask(&planes, &logits_requests(&reference), &[&["--cache", "f32"], &flags[..]].concat());
            for prompt in reference.prompts.keys() {
                let error = nmse(&last(&wanted, prompt), &last(&found, prompt));
                assert!(error <= bound, "{name} {format} {prompt} {flags:?}: NMSE {error:.2e}, at most {bound:.0e}");
            }
        }
        let flags = ["--quantize", format];
        hold_text(&reference, &ask(&model(name), &text_requests(&reference), &flags), limits, &flags);
    }
}

#[test]
fn formats_on_llama3_gqa() {
    hold_formats("llama3_gqa");
}

#[test]
fn formats_on_mistral_swa() {
    hold_formats("mistral_swa");
}

#[test]
fn formats_on_qwen2_bias() {
    hold_formats("qwen2_bias");
}

#[test]
fn formats_on_qwen3_qknorm() {
    hold_formats("qwen3_qknorm");
}

#[test]
fn tokenizers_and_streams_are_exact() {
    for name in std::fs::read_dir(fixtures("expected"))
        .expect("expectations")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
    {
        let file = fixtures("expected").join(&name).join("tokenizer_cases.json");
        if file.exists() {
            hold_tokenizer(&name, &read_json(&file));
        }
    }
}

fn hold_tokenizer(name: &str, cases: &Value) {
    let (mut requests, mut wanted) = (Vec::new(), BTreeMap::new());
    let mut add = |id: String, mut request: Value, key: &'static str, expected: &Value| {
        request["id"] = json!(id);
        requests.push(request);
        wanted.insert(id, (key, expected.clone()));
    };
    for (i, case) in cases["cases"].as_array().expect("cases").iter().enumerate() {
        let (text, ids) = (&case["text"], &case["ids"]);
        add(format!("encode {i}"), json!({"op": "encode", "text": text, "add_special_tokens": false}), "ids", ids);
        add(
            format!("special {i}"),
            json!({"op": "encode", "text": text, "add_special_tokens": true}),
            "ids",
            &case["ids_special"],
        );
        add(
            format!("decode {i}"),
            json!({"op": "decode", "ids": ids, "skip_special_tokens": false}),
            "text",
            &case["decoded"],
        );
        add(
            format!("stream {i}"),
            json!({"op": "stream", "ids": ids, "skip_special_tokens": false}),
            "pieces",
            &case["decoded"],
        );
    }
    for (i, case) in cases["decode_cases"].as_array().expect("cases").iter().enumerate() {
        let ids = &case["ids"];
        add(
            format!("raw {i}"),
            json!({"op": "decode", "ids": ids, "skip_special_tokens": false}),
            "text",
            &case["decoded"],
        );
        add(
            format!("skip {i}"),
            json!({"op": "decode", "ids": ids, "skip_special_tokens": true}),
            "text",
            &case["decoded_skip"],
        );
        // Invalid UTF-8 has no unique correct streaming.
        if !case["decoded_skip"].as_str().is_some_and(|text| text.contains('\u{fffd}')) {
            add(
                format!("skipped stream {i}"),
                json!({"op": "stream", "ids": ids, "skip_special_tokens": true}),
                "pieces",
                &case["decoded_skip"],
            );
        }
    }
    let answers = ask(&model(name), &requests, &[]);
    for (id, (key, expected)) in wanted {
        let found = match key {
            "pieces" => json!(
                answers[&id]["pieces"].as_array().expect("pieces").iter().filter_map(Value::as_str).collect::<String>()
            ),
            _ => answers[&id][key].clone(),
        };
        assert_eq!(found, expected, "{name}: {id}");
    }
}

#[test]
fn chat_templates_are_exact() {
    let mut seen = 0;
    for name in std::fs::read_dir(fixtures("expected"))
        .expect("expectations")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
    {
        let file = fixtures("expected").join(&name).join("chat_cases.json");
        if !file.exists() {
            continue;
        }
        let cases = read_json(&file)["cases"].as_array().expect("cases").clone();
        let request = |(i, case): (usize, &Value)| {
            let mut request =
                json!({"id": i.to_string(), "op": "chat", "messages": case["messages"], "kwargs": case["kwargs"]});
            request["add_generation_prompt"] = case["add_generation_prompt"].clone();
            if let Some(tools) = case.get("tools") {
                request["tools"] = tools.clone();
            }
            request
        };
        let requests: Vec<Value> = cases.iter().enumerate().map(request).collect();
        let answers = ask(&model(&name), &requests, &[]);
        for (i, case) in cases.iter().enumerate() {
            let answer = &answers[&i.to_string()];
            match &case["rendered"] {
                Value::Null => assert!(answer["error"].is_string(), "{name}: case {i} must be refused, got {answer}"),
                rendered => assert_eq!(&answer["text"], rendered, "{name}: case {i}"),
            }
            seen += 1;
        }
    }
    assert!(seen > 0, "no chat case was found");
}

#[test]
fn what_cannot_be_done_is_answered_as_unsupported() {
    let requests = [
        json!({"id": "a", "op": "logits", "ids": [1]}),
        json!({"id": "b", "op": "fly"}),
        json!({"id": "c", "op": "encode", "text": "ا"}),
    ];
    let answers = ask(&model("gemma3_text"), &requests, &[]);
    assert_eq!((&answers["b"]["unsupported"], answers["c"]["ids"].is_array()), (&json!(true), true), "{answers:?}");
    let answers = ask(&model("llama3_gqa"), &[json!({"id": "long", "op": "logits", "ids": [4_000_000]})], &[]);
    assert!(answers["long"]["error"].as_str().is_some_and(|e| e.contains("vocabulary")), "{answers:?}");
}
