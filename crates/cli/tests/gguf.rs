//! GGUF files compared with transformers' results for their dequantized weights, and with the tokenizers that they were
//! made from.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use bayan_weights::gguf::block_type::BlockType;
use bayan_weights::{FORMATS, Format};
use common::{bayan, every_model, finish, fixtures, succeed};
use serde_json::{Value, json};

/// A file of tests/fixtures/gguf.
struct GgufFile {
    name: String,
    /// The checkpoint that the file was made from.
    model: String,
    /// The largest NMSE after loading: formats round scales to f16, or quantize again where none of ours is equal.
    bound: f64,
}

/// All files, sorted.
fn files() -> Vec<GgufFile> {
    let entries = std::fs::read_dir(fixtures("gguf")).expect("fixtures").map(|entry| entry.expect("an entry"));
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".gguf")?.to_owned())).collect();
    names.sort();
    assert!(names.len() >= 5, "only {names:?}");
    let file = |name: String| {
        let (model, types) = name.split_once('-').expect("a model and its types");
        let bound = match types {
            "mix" => 1e-3,
            _ => 1e-10,
        };
        GgufFile { model: model.to_owned(), bound, name }
    };
    names.into_iter().map(file).collect()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .expect("JSON")
}

fn ask(model: &Path, requests: &[Value], flags: &[&str]) -> BTreeMap<String, Value> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("request.json");
    std::fs::write(&file, json!({"version": 1, "model": model, "adapter": null, "requests": requests}).to_string())
        .expect("a file");
    let output = finish(bayan().arg("conformance").arg("--request").arg(&file).args(flags));
    let answer: Value = serde_json::from_str(&succeed(&output)).expect("one line of JSON");
    let responses = answer["responses"].as_array().expect("responses").clone();
    responses.into_iter().map(|response| (response["id"].as_str().expect("an id").to_string(), response)).collect()
}

fn floats(file: &safetensors::SafeTensors<'_>, name: &str) -> Vec<f32> {
    file.tensor(name)
        .expect("a tensor")
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

fn nmse(wanted: &[f32], found: &[f32]) -> f64 {
    assert_eq!(wanted.len(), found.len());
    let error: f64 = wanted.iter().zip(found).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / wanted.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>()
}

fn gguf(name: &str) -> std::path::PathBuf {
    fixtures("gguf").join(format!("{name}.gguf"))
}

/// Compares logits; `bound` is for the file as it is, or with every weight as f32.
fn hold_logits(name: &str, model: &str, bound: f64, flags: &[&str]) {
    let prompts = json_of(&fixtures("expected").join(model).join("prompts.json"));
    let bytes = std::fs::read(fixtures("gguf").join(format!("{name}.expected.safetensors"))).expect("logits");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let known = |prompt: &&String| file.tensor(&format!("{prompt}.last_logits")).is_ok();
    let names: Vec<&String> = prompts.as_object().expect("prompts").keys().filter(known).collect();
    assert!(names.len() >= 3, "{name}");
    let request = |prompt: &&String| json!({"id": prompt, "op": "logits", "ids": prompts[prompt.as_str()], "top_k": 1, "full_last": true});
    let answers = ask(&gguf(name), &names.iter().map(request).collect::<Vec<_>>(), flags);
    for prompt in names {
        let found: Vec<f32> = serde_json::from_value(answers[prompt]["last_logits"].clone())
            .unwrap_or_else(|e| panic!("{name}: {e}: {answers:?}"));
        let error = nmse(&floats(&file, &format!("{prompt}.last_logits")), &found);
        println!("{name} {prompt} {flags:?}: NMSE {error:.2e}");
        assert!(error <= bound, "{name} {prompt} {flags:?}: NMSE {error:.2e}, at most {bound:.0e}");
    }
}

#[test]
fn logits_are_those_of_the_dequantized_weights() {
    for GgufFile { name, model, .. } in &files() {
        hold_logits(name, model, 1e-10, &["--quantize", "f32", "--cache", "f32", "--disable", "f16"]);
    }
}

#[test]
fn formats_of_our_own_lose_no_more_than_is_said() {
    for GgufFile { name, model, bound } in &files() {
        hold_logits(name, model, *bound, &["--cache", "f32", "--disable", "f16,dot"]);
    }
}

#[test]
fn ids_are_those_of_the_original_tokenizer() {
    for GgufFile { name, model, .. } in &files() {
        // Other tests compare the original's ids with transformers; not every model has its own cases.
        let own = fixtures("expected").join(model).join("tokenizer_cases.json");
        let cases = json_of(&if own.exists() {
            own
        } else {
            fixtures("expected").join("llama3_gqa").join("tokenizer_cases.json")
        });
        let mut requests = Vec::new();
        for (i, case) in cases["cases"].as_array().expect("cases").iter().enumerate() {
            for special in [false, true] {
                requests.push(json!({"id": format!("encode {i} {special}"), "op": "encode", "text": case["text"], "add_special_tokens": special}));
            }
            requests.push(
                json!({"id": format!("decode {i}"), "op": "decode", "ids": case["ids"], "skip_special_tokens": false}),
            );
        }
        let (found, wanted) = (ask(&gguf(name), &requests, &[]), ask(&fixtures("models").join(model), &requests, &[]));
        assert!(wanted.len() > 300, "{name}");
        for (id, answer) in wanted {
            assert_eq!(found[&id], answer, "{name}: {id}");
        }
    }
}

#[test]
fn templates_come_with_the_file() {
    let message = json!([{"role": "user", "content": "مرحبا"}]);
    for (name, model) in [("llama3_k256-Q4_K", "llama3_k256"), ("qwen2_bias-Q4_0", "qwen2_bias")] {
        let request = [json!({"id": "a", "op": "chat", "messages": message, "add_generation_prompt": true})];
        let (ours, original) = (ask(&gguf(name), &request, &[]), ask(&fixtures("models").join(model), &request, &[]));
        assert!(ours["a"]["text"].as_str().is_some_and(|text| text.contains("مرحبا")), "{name}: {ours:?}");
        assert_eq!(ours["a"]["text"], original["a"]["text"], "{name}");
    }
}

#[test]
fn inspect_says_what_becomes_of_each_type() {
    let output = finish(bayan().arg("inspect").arg(gguf("llama3_k256-mix")));
    let text = succeed(&output);
    for part in ["Q2_K", "Q5_1", "llama"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Exported and read again, logits and ids equal the original's: reordered rows, norms, scales of rotary frequencies,
/// formats.
#[test]
fn exported_models_come_back() {
    let prompts = |model: &str| json_of(&fixtures("expected").join(model).join("prompts.json"));
    let folder = tempfile::tempdir().expect("a folder");
    // These have sizes or orders of layers that no published model has, which llama.cpp cannot open; `*_plain` and
    // `*_even` are like them.
    let is_written = |model: &String| !["cohere", "cohere2", "gemma4", "qwen3_5"].contains(&model.as_str());
    let written: Vec<String> = every_model().into_iter().filter(is_written).collect();
    let formats = FORMATS.iter().copied().filter(|format| !format.is_dense());
    // Each format once, with one of three models in turn.
    let quantized =
        written.iter().filter(|model| ["llama2_mha", "qwen2_yarn", "qwen3_qknorm"].contains(&model.as_str()));
    let quantized = quantized.cycle().zip(formats).map(|(model, format)| (model, Some(format)));
    // Rows of 256, which the block types of formats with shared scales divide.
    let wide = written.iter().filter(|model| *model == "llama3_k256");
    let shared = FORMATS.iter().copied().filter(|format| format.planes().iter().any(|plane| plane.blocks == 8));
    let wide = wide.cycle().zip(shared).map(|(model, format)| (model, Some(format)));
    let as_stored = written.iter().map(|model| (model, None));
    for (model, format) in quantized.chain(wide).chain(as_stored).map(|(model, format)| (model.as_str(), format)) {
        let mut from = fixtures("models").join(model);
        let name = format!("{model}-{}", format.map_or("stored", |format| format.name()));
        if let Some(format) = format {
            let quantized = folder.path().join(&name);
            succeed(&finish(bayan().arg("quantize").arg(&from).arg(&quantized).args([
                "--format",
                format.name(),
                "--embedding",
                "q8_0",
                "--head",
                "q8_0",
            ])));
            from = quantized;
        }
        let out = folder.path().join(format!("{name}.gguf"));
        succeed(&finish(bayan().arg("export").arg("--gguf").arg(&out).arg("--model").arg(&from)));
        let again = finish(bayan().arg("export").arg("--gguf").arg(&out).arg("--model").arg(&from));
        assert!(!again.status.success(), "nothing is overwritten");
        let prompt = prompts(model).as_object().expect("prompts").values().next_back().expect("one").clone();
        // GGUF cannot express a space that is added before a text but not after special tokens.
        let tokenizer = json_of(&from.join("tokenizer.json"));
        let only_first = tokenizer.pointer("/pre_tokenizer/prepend_scheme") == Some(&json!("first"));
        let text = if only_first { "مرحبا 12 don't" } else { "مرحبا <s> 12 don't" };
        let requests = [
            json!({"id": "ids", "op": "encode", "text": text, "add_special_tokens": true}),
            json!({"id": "logits", "op": "logits", "ids": prompt, "top_k": 1, "full_last": true}),
        ];
        // A file is read alike for every device; the CPU would multiply quantized matrices with rounded inputs.
        let gpu = ["--cache", "f32", "--disable", "f16,dot"];
        let flags = if format.is_some() { &gpu[..] } else { &["--device", "cpu", "--cache", "f32"] };
        let (found, wanted) = (ask(&out, &requests, flags), ask(&from, &requests, flags));
        assert_eq!(found["ids"], wanted["ids"], "{name}");
        let last = |answers: &BTreeMap<String, Value>| -> Vec<f32> {
            serde_json::from_value(answers["logits"]["last_logits"].clone()).expect("logits")
        };
        let error = nmse(&last(&wanted), &last(&found));
        // Formats without a block type for these rows are written as f16, or with scales in f16; so are matrices with
        // another scale in llama.cpp's form (gemma2's queries, multipliers of falcon_h1 and jais).
        let narrow = |format: &dyn Format| format.block_types().written[0].block() == 256 && model != "llama3_k256";
        let is_rounded =
            format.is_some_and(|format| format.block_types().written == [BlockType::F16] || narrow(format));
        let bound = if is_rounded {
            1e-5
        } else if ["gemma2_softcap", "falcon_h1", "falcon_h1_norm", "jais"].contains(&model) {
            1e-6
        } else {
            1e-9
        };
        assert!(error < bound, "{name}: NMSE {error:.2e}");
    }
}

/// The embedded model, whose pre-tokenizer has another expression than those of GGUF, but cuts alike.
#[test]
fn the_embedded_model_is_exported() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("embedded.gguf");
    succeed(&finish(bayan().arg("export").arg("--gguf").arg(&out).args(["--model", "embedded"])));
    let texts = json_of(&fixtures("expected").join("llama3_gqa").join("tokenizer_cases.json"));
    let texts = texts["cases"].as_array().expect("cases").iter().map(|case| case["text"].clone());
    // Marks alone, before and after letters, and in another order than NFC's.
    let marks = ["َ", "ّ َ", "ّب", "\n\u{651}\u{64e}ب", "مُحَمَّدٌ", "ا\u{654}", "«\u{64b}"].map(Value::from);
    let mut requests: Vec<Value> = texts
        .chain(marks)
        .enumerate()
        .map(|(i, text)| json!({"id": i.to_string(), "op": "encode", "text": text, "add_special_tokens": true}))
        .collect();
    requests.push(json!({"id": "logits", "op": "logits", "ids": [5, 900, 33, 71], "top_k": 1, "full_last": true}));
    let flags = ["--cache", "f32", "--disable", "f16,dot"];
    let (found, wanted) = (ask(&out, &requests, &flags), ask(Path::new("embedded"), &requests, &flags));
    assert!(wanted.len() > 100);
    for (id, answer) in &wanted {
        assert_eq!(&found[id], answer, "{id}");
    }
}

#[test]
fn adapters_are_exported_for_llama_cpp() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("a.gguf");
    let adapter = fixtures("lora").join("llama3_r8_all").join("adapter_final");
    succeed(&finish(
        bayan()
            .arg("export")
            .arg("--gguf")
            .arg(&out)
            .arg("--adapter")
            .arg(adapter)
            .arg("--model")
            .arg(fixtures("models").join("llama3_gqa")),
    ));
    let bytes = std::fs::read(&out).expect("a file");
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    for name in ["adapter.lora.alpha", "blk.0.attn_q.weight.lora_a", "blk.2.ffn_down.weight.lora_b"] {
        assert!(holds(name), "{name}");
    }
}

/// What `export --adapter` writes is read by `--adapter`: on models with reordered rows and without, and with several
/// scales.
#[test]
fn exported_adapters_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    for (adapter, model) in [("llama3_r8_all", "llama3_gqa"), ("qwen2_r4_rslora", "qwen2_bias")] {
        let (base, peft) = (fixtures("models").join(model), fixtures("lora").join(adapter).join("adapter_final"));
        let out = folder.path().join(format!("{adapter}.gguf"));
        let export = |from: &Path, to: &Path| {
            succeed(&finish(
                bayan().arg("export").arg("--gguf").arg(to).arg("--adapter").arg(from).arg("--model").arg(&base),
            ));
        };
        export(&peft, &out);
        let logits = |adapter: Option<&Path>| -> Vec<f32> {
            let file = folder.path().join("request.json");
            let request = json!({"id": "a", "op": "logits", "ids": [5, 9, 33, 7], "top_k": 1, "full_last": true});
            let body = json!({"version": 1, "model": base, "adapter": adapter, "requests": [request]});
            std::fs::write(&file, body.to_string()).expect("a file");
            let flags = ["--cache", "f32", "--disable", "f16,dot"];
            let answer = succeed(&finish(bayan().arg("conformance").arg("--request").arg(&file).args(flags)));
            let answer: Value = serde_json::from_str(&answer).expect("JSON");
            serde_json::from_value(answer["responses"][0]["last_logits"].clone()).expect("logits")
        };
        let (plain, wanted, found) = (logits(None), logits(Some(&peft)), logits(Some(&out)));
        assert!(nmse(&wanted, &plain) > 1e-6, "{adapter} changes the model");
        assert!(nmse(&wanted, &found) < 1e-10, "{adapter}: NMSE {:.2e}", nmse(&wanted, &found));
        // Written again, the file is the same to the byte.
        let again = folder.path().join(format!("{adapter}-again.gguf"));
        export(&out, &again);
        assert!(std::fs::read(&out).expect("a file") == std::fs::read(&again).expect("a file"), "{adapter}");
    }
}

/// A GGUF file, and what `bayan quantize` makes of one, are exported with their tokenizer.
#[test]
fn gguf_files_are_exported_again() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["llama2_mha-Q5_0", "qwen2_bias-Q4_0", "gemma2_softcap-Q8_0"] {
        let again = folder.path().join(format!("{name}-again.gguf"));
        let export = |from: &Path, to: &Path| {
            succeed(&finish(bayan().arg("export").arg("--gguf").arg(to).arg("--model").arg(from)));
        };
        let quantized = folder.path().join(name);
        let output = finish(bayan().arg("quantize").arg(gguf(name)).arg(&quantized).args(["--format", "q4_0"]));
        succeed(&output);
        let said = common::text(&output.stderr);
        assert_eq!(said.contains("quantized again to q4_0"), !name.contains("Q4_0"), "{name}: {said}");
        let requests: Vec<Value> = ["مرحبا بك في بيان 12 don't", "  سطر\nثان"]
            .iter()
            .enumerate()
            .map(|(i, text)| json!({"id": i.to_string(), "op": "encode", "text": text, "add_special_tokens": true}))
            .collect();
        let wanted = ask(&gguf(name), &requests, &[]);
        if name.starts_with("gemma2") {
            continue; // llama.cpp's scale of its queries cannot be applied to blocks.
        }
        export(&gguf(name), &again);
        assert_eq!(ask(&again, &requests, &[]), wanted, "{name}");
        let smaller = folder.path().join(format!("{name}-q4.gguf"));
        export(&quantized, &smaller);
        assert_eq!(ask(&smaller, &requests, &[]), wanted, "{name} quantized");
    }
}

#[test]
fn perplexity_and_divergence() {
    let model = fixtures("models").join("qwen3_qknorm");
    let text = fixtures("expected").join("ppl_text.txt");
    let measure = |flags: &[&str]| -> Value {
        let output = finish(
            bayan()
                .arg("perplexity")
                .arg(&text)
                .arg("--model")
                .arg(&model)
                .args(["--json", "--context", "64", "--stride", "16"])
                .args(flags),
        );
        serde_json::from_str(&succeed(&output)).expect("JSON")
    };
    let base = model.to_str().expect("a path");
    let same = measure(&["--base", base]);
    assert!(same["tokens"].as_u64().is_some_and(|n| n > 50), "{same}");
    assert!(same["base"]["mean_kl"].as_f64().is_some_and(|kl| kl < 1e-9), "{same}");
    let rough = measure(&["--base", base, "--quantize", "q4_0"]);
    let kl = |value: &Value| value["base"]["mean_kl"].as_f64().expect("a divergence");
    assert!(kl(&rough) > 1e-4 && kl(&rough) > kl(&measure(&["--base", base, "--quantize", "q8_0"])), "{rough}");
}
