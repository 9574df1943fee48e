//! Models by name, with a local test server instead of a hub: complete and interrupted transfers, refusals, and false
//! listings.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use common::{bayan, fail, finish, fixtures, succeed};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Faults that the server simulates.
#[derive(Clone, Default)]
struct Faults {
    /// Answers every listing with this status.
    status: Option<u16>,
    /// Answers this many requests for files with 429 first.
    too_many: usize,
    /// Interrupts this many transfers of the weights halfway.
    breaks: usize,
    /// Sends other bytes of the same size.
    damaged: bool,
    /// Sends more bytes than listed.
    longer: bool,
    /// Renames the first file in the listing.
    rename: Option<&'static str>,
    commit: Option<&'static str>,
}

struct Hub {
    address: String,
    /// Method, path and range of every request.
    seen: Arc<Mutex<Vec<String>>>,
    home: tempfile::TempDir,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sibling(name: &str, bytes: &[u8]) -> Value {
    let mut value = json!({"rfilename": name, "size": bytes.len(), "blobId": hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())});
    if name.ends_with(".safetensors") || name.ends_with(".gguf") {
        value["lfs"] = json!({"sha256": hex(&Sha256::digest(bytes)), "size": bytes.len(), "pointerSize": 130});
    }
    value
}

fn serve(files: BTreeMap<String, Vec<u8>>, faults: Faults) -> Hub {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = seen.clone();
    let faults = Arc::new(Mutex::new(faults));
    let files = Arc::new(files);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (files, faults, log) = (files.clone(), faults.clone(), log.clone());
            std::thread::spawn(move || answer(stream, &files, &faults, &log));
        }
    });
    Hub { address, seen, home: tempfile::tempdir().expect("a folder") }
}

fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, faults: &Mutex<Faults>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let headers: Vec<String> =
        lines.map_while(Result::ok).take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    let header =
        |name: &str| headers.iter().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_string());
    let path = first.split(' ').nth(1).unwrap_or("").to_string();
    let range = header("range:");
    log.lock().unwrap().push(format!("{path} {}", range.clone().unwrap_or_default()));
    let mut faults = faults.lock().unwrap();
    let mut send = |status: u16, extra: &str, body: &[u8], length: usize| {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{extra}\r\n");
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    if path.starts_with("/api/") {
        if let Some(status) = faults.status {
            return send(status, "", b"", 0);
        }
        let mut siblings: Vec<Value> = files.iter().map(|(name, bytes)| sibling(name, bytes)).collect();
        if let Some(name) = faults.rename {
            siblings[0]["rfilename"] = json!(name);
        }
        let body = json!({"sha": faults.commit.unwrap_or(COMMIT), "siblings": siblings}).to_string();
        return send(200, "Content-Type: application/json\r\n", body.as_bytes(), body.len());
    }
    if faults.too_many > 0 {
        faults.too_many -= 1;
        return send(429, "Retry-After: 0\r\n", b"", 0);
    }
    let Some(bytes) = path.rsplit_once("/resolve/").and_then(|(_, rest)| files.get(rest.split_once('/')?.1)) else {
        return send(404, "", b"", 0);
    };
    let mut bytes = bytes.clone();
    if faults.damaged {
        bytes.iter_mut().for_each(|byte| *byte ^= 1);
    }
    if faults.longer {
        bytes.extend([0; 100]);
    }
    let start: usize = range.and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
    let rest = &bytes[start.min(bytes.len())..];
    let (status, extra) = if start > 0 {
        (206, format!("Content-Range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len()))
    } else {
        (200, String::new())
    };
    let broken = faults.breaks > 0 && path.ends_with(".safetensors");
    if broken {
        faults.breaks -= 1;
    }
    send(status, &extra, if broken { &rest[..rest.len() / 3] } else { rest }, rest.len());
}

/// A small checkpoint as a repository, with files that no model needs.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(fixtures("models").join("qwen2_bias")).expect("a fixture").flatten() {
        files.insert(entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).expect("a file"));
    }
    files.insert("onnx/model.onnx".to_string(), vec![1; 5000]);
    files.insert("README.md".to_string(), b"text".to_vec());
    files
}

impl Hub {
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = bayan();
        command
            .env("HF_HOME", self.home.path())
            .env("HF_ENDPOINT", &self.address)
            .env_remove("HF_TOKEN")
            .env_remove("HF_HUB_OFFLINE");
        finish(command.args(arguments))
    }

    fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// The files in the cache.
    fn files(&self) -> Vec<String> {
        fn walk(directory: &Path, into: &mut Vec<String>) {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                match entry.path().is_dir() {
                    true => walk(&entry.path(), into),
                    false => into.push(entry.path().display().to_string()),
                }
            }
        }
        let mut files = Vec::new();
        walk(self.home.path(), &mut files);
        files
    }
}

#[test]
fn a_model_is_pulled_opened_listed_and_removed() {
    let hub = serve(repository(), Faults::default());
    let refused = fail(&hub.run(&["tokenize", "سلام", "--model", "org/name"]), 1);
    assert!(refused.contains("bayan pull org/name"), "nothing is downloaded unasked: {refused}");
    assert!(hub.files().is_empty());
    let path = succeed(&hub.run(&["pull", "org/name"]));
    assert!(path.trim().ends_with(&format!("models--org--name/snapshots/{COMMIT}")), "{path}");
    assert!(
        !hub.requests().iter().any(|request| request.contains("onnx") || request.contains("README")),
        "only what is needed: {:?}",
        hub.requests()
    );
    let before = hub.requests().len();
    let ids = succeed(&hub.run(&["--offline", "tokenize", "سلام", "--model", "org/name"]));
    let original = fixtures("models").join("qwen2_bias");
    assert_eq!(ids, succeed(&hub.run(&["tokenize", "سلام", "--model", original.to_str().expect("a path")])));
    assert_eq!(hub.requests().len(), before, "what is here is opened without a question");
    assert!(succeed(&hub.run(&["list"])).contains("org/name"));
    succeed(&hub.run(&["pull", "org/name"]));
    assert!(!hub.requests()[before..].iter().any(|request| request.contains("/resolve/")), "nothing comes twice");
    assert!(succeed(&hub.run(&["remove", "org/name"])).contains("freed"));
    assert!(fail(&hub.run(&["remove", "org/name"]), 1).contains("bayan list"));
    assert!(fail(&hub.run(&["--offline", "tokenize", "a", "--model", "org/name"]), 1).contains("--offline"));
}

#[test]
fn broken_transfers_go_on_where_they_ended() {
    let hub = serve(repository(), Faults { breaks: 2, too_many: 1, ..Default::default() });
    succeed(&hub.run(&["pull", "org/name"]));
    let ranges: Vec<String> = hub.requests().into_iter().filter(|request| request.contains("bytes=")).collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    let hub = serve(repository(), Faults { breaks: 99, ..Default::default() });
    let message = fail(&hub.run(&["pull", "org/name"]), 1);
    assert!(message.contains("resumes from there"), "{message}");
    assert!(hub.files().iter().any(|file| file.ends_with(".incomplete")));
    assert!(
        fail(&hub.run(&["tokenize", "a", "--model", "org/name"]), 1).contains("bayan pull"),
        "half a model is none"
    );
}

#[test]
fn a_data_set_is_pulled_scored_listed_and_removed() {
    let mut files = BTreeMap::new();
    let rows = |range: std::ops::Range<usize>| {
        let row =
            |n: usize| json!({"query": format!("سؤال {n}"), "sol1": "أ", "sol2": "ب", "label": 0}).to_string() + "\n";
        range.map(row).collect::<String>().into_bytes()
    };
    files.insert("data/test.jsonl".to_string(), rows(0..3));
    for name in ["README.md", "script.py", "dataset_infos.json", ".cache/x.json"] {
        files.insert(name.to_string(), b"{}".to_vec());
    }
    let hub = serve(files.clone(), Faults { too_many: 1, ..Default::default() });
    let outs = ["a", "b"].map(|name| hub.home.path().join(name).display().to_string());
    let model = fixtures("models").join("llama2_mha").display().to_string();
    let run = |out: usize, more: &[&str]| {
        let own = ["--offline", "eval", "run", "--tasks", "copa_ar", "--model", &model, "--limit", "2", "--out"];
        hub.run(&[&own[..], &[&outs[out], "--json"], more].concat())
    };
    let missing = fail(&run(0, &["--data", "Hennara/copa_ar"]), 1);
    assert!(missing.contains("bayan pull --dataset Hennara/copa_ar"), "{missing}");
    let path = succeed(&hub.run(&["pull", "--dataset", "Hennara/copa_ar"]));
    assert!(path.trim().ends_with(&format!("datasets--Hennara--copa_ar/snapshots/{COMMIT}")), "{path}");
    let requests = hub.requests();
    assert!(requests[0].starts_with("/api/datasets/Hennara/copa_ar/revision/main"), "{requests:?}");
    assert!(requests[1..].iter().all(|request| request.starts_with("/datasets/Hennara/copa_ar/resolve/")));
    assert!(requests[1..].iter().all(|request| request.contains("data/test.jsonl")), "rows only: {requests:?}");
    // Without --data, all that were pulled are looked through.
    let scored = [run(0, &["--data", "Hennara/copa_ar"]), run(1, &[])].map(|output| {
        let results: Value = serde_json::from_str(&succeed(&output)).expect("JSON");
        results["results"]["lm-eval/copa_ar"].clone()
    });
    assert!(scored[0]["sample_len"] == 2 && scored[0] == scored[1], "{scored:?}");
    let listed: Value = serde_json::from_str(&succeed(&hub.run(&["list", "--json"]))).expect("JSON");
    assert_eq!(
        (listed["datasets"][0]["name"].as_str(), listed["models"].as_array().map(Vec::len)),
        (Some("Hennara/copa_ar"), Some(0))
    );
    assert!(succeed(&hub.run(&["list"])).contains("data set"));
    // A benchmark is no training data, and says so.
    let train = ["--offline", "finetune", "--model", &model, "--dry-run", "--data"];
    let refused = fail(&hub.run(&[&train[..], &["Hennara/copa_ar"]].concat()), 1);
    assert!(
        refused.contains("expected a data set with training data") && refused.contains("bayan eval run"),
        "{refused}"
    );
    assert!(fail(&hub.run(&[&train[..], &["org/other"]].concat()), 1).contains("bayan pull --dataset org/other"));
    assert!(fail(&hub.run(&["remove", "Hennara/copa_ar"]), 1).contains("bayan list"), "there is no such model");
    assert!(succeed(&hub.run(&["remove", "--dataset", "Hennara/copa_ar"])).contains("freed"));
    // Bytes that are not what was listed are not kept; a data set that a program makes is refused.
    let damaged = serve(files.clone(), Faults { damaged: true, ..Default::default() });
    assert!(fail(&damaged.run(&["pull", "--dataset", "Hennara/copa_ar"]), 1).contains("checksum"));
    files.remove("data/test.jsonl");
    let script = serve(files, Faults::default());
    assert!(fail(&script.run(&["pull", "--dataset", "a/b"]), 1).contains("no file with rows"));
    assert!(fail(&script.run(&["pull", "--dataset", "a/b/x.gguf"]), 2).contains("org/name:revision"));
    fail(&script.run(&["pull"]), 2);
}

#[test]
fn a_pulled_data_set_is_trained_on_by_name() {
    let row = |question: &str, more: Value| {
        let mut row = json!({"instruction": question, "output": "جواب"});
        row.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        format!("{row}\n").into_bytes()
    };
    let files = BTreeMap::from([
        ("data/train-00000-of-00001.jsonl".to_string(), row("سؤال للتدريب", json!({}))),
        ("data/test-00000-of-00001.jsonl".to_string(), row("سؤال للاختبار", json!({}))),
    ]);
    let hub = serve(files, Faults::default());
    succeed(&hub.run(&["pull", "--dataset", "org/set"]));
    let model = fixtures("models").join("qwen2_bias").display().to_string();
    let train = ["--offline", "finetune", "--model", &model, "--dry-run", "--data", "org/set"];
    let shown = succeed(&hub.run(&train));
    assert!(shown.contains("للتدريب") && !shown.contains("للاختبار"), "{shown}");
    // Rows of a benchmark under a name of training data are refused with the columns that were found.
    let files = BTreeMap::from([("train.jsonl".to_string(), b"{\"sol1\": \"a\", \"label\": 0}\n".to_vec())]);
    let hub = serve(files, Faults::default());
    succeed(&hub.run(&["pull", "--dataset", "org/set"]));
    let refused = fail(&hub.run(&train), 1);
    assert!(refused.contains("train.jsonl: line 1") && refused.contains("sol1"), "{refused}");
}

#[test]
fn refusals_say_what_to_do() {
    for (status, word) in
        [(401, "HF_TOKEN"), (403, "conditions"), (404, "no such model"), (429, "too many requests"), (500, "500")]
    {
        let hub = serve(repository(), Faults { status: Some(status), ..Default::default() });
        let message = fail(&hub.run(&["pull", "org/name"]), 1);
        assert!(message.contains(word), "{status}: {message}");
    }
    let nobody = Hub {
        address: "http://127.0.0.1:1".into(),
        seen: Arc::default(),
        home: tempfile::tempdir().expect("a folder"),
    };
    assert!(fail(&nobody.run(&["pull", "org/name"]), 1).contains("network"));
}

#[test]
fn bytes_that_are_not_what_was_listed_are_not_kept() {
    for faults in [Faults { damaged: true, ..Default::default() }, Faults { longer: true, ..Default::default() }] {
        let hub = serve(repository(), faults);
        let message = fail(&hub.run(&["pull", "org/name"]), 1);
        assert!(message.contains("checksum") || message.contains("got more"), "{message}");
        assert!(hub.files().is_empty(), "{:?}", hub.files());
    }
}

#[test]
fn names_that_leave_the_cache_are_refused() {
    let hub = serve(repository(), Faults { commit: Some("../../../../etc"), ..Default::default() });
    assert!(fail(&hub.run(&["pull", "org/name"]), 1).contains("do not trust"));
    // Not files of a model, although their names look like it.
    for name in ["model-/../../../evil.safetensors", "model-..\\evil.safetensors", "model-C:evil.safetensors"] {
        let mut files = repository();
        files.remove("model.safetensors");
        files.insert("model.safetensors.index.json".into(), b"{}".to_vec());
        let first = files.keys().next().cloned().expect("a file");
        assert!(first.starts_with("README"));
        let hub = serve(files, Faults { rename: Some(name), ..Default::default() });
        let message = fail(&hub.run(&["pull", "org/name"]), 1);
        assert!(message.contains("leaves its directory"), "{message}");
        assert!(hub.files().is_empty());
    }
    for name in ["../x", "org/../x", "org/name:../x", "org/name/../x.gguf"] {
        fail(&hub.run(&["pull", name]), 2);
    }
}

#[test]
fn one_file_of_a_repository() {
    let mut files = BTreeMap::new();
    for name in ["qwen2_bias-Q4_0", "llama2_mha-Q5_0"] {
        files.insert(
            format!("q/{name}.gguf"),
            std::fs::read(fixtures("gguf").join(format!("{name}.gguf"))).expect("a file"),
        );
    }
    let hub = serve(files, Faults::default());
    let message = fail(&hub.run(&["pull", "org/name"]), 1);
    assert!(message.contains("several GGUF files") && message.contains("q/llama2_mha-Q5_0.gguf"), "{message}");
    assert!(fail(&hub.run(&["pull", "org/name/q/other.gguf"]), 1).contains("there is no file"));
    let path = succeed(&hub.run(&["pull", "org/name/q/qwen2_bias-Q4_0.gguf"]));
    assert!(path.trim().ends_with("qwen2_bias-Q4_0.gguf"));
    let text = succeed(&hub.run(&["inspect", "--model", "org/name/q/qwen2_bias-Q4_0.gguf"]));
    assert!(text.contains("qwen2") && text.contains("Q4_0"), "{text}");
    assert!(!hub.requests().iter().any(|request| request.contains("/resolve/") && request.contains("llama2")));
}
