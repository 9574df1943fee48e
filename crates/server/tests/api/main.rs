//! A server with the embedded model on a real socket, asked as programs ask it. One file for each theme.

mod adapters;
mod cancel;
mod chat;
mod completions;
mod faults;
mod fuzz;
mod keys;
mod limits;
mod messages;
mod metrics;
mod page;
mod responses;
mod speculation;
mod stop;
mod streaming;
mod structured;
mod tokens;
mod tools;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bayan_generate::{Cpu, EngineOptions, Generation, Model, ModelOptions, StepSizes};
use bayan_gpu::{Gpu, GpuOptions, block_on};
use bayan_server::{Limits, Opened, Server, ServerOptions};
use bayan_weights::{Checkpoint, DirectorySource, MemorySource, Source};
use serde_json::{Value, json};

/// Slots of the test server.
const SLOTS: usize = 2;

/// Positions of each slot.
const CONTEXT: usize = 256;

/// A running server.
struct Running {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    agent: ureq::Agent,
    key: Option<String>,
    /// The device of the model that is open.
    gpu: Arc<Mutex<Option<Gpu>>>,
}

/// An answer of the server.
struct Got {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Got {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is UTF-8")
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| header.1.as_str())
    }

    /// The JSON of a good answer.
    fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The error of a bad one.
    fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        let error = self.json()["error"].clone();
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        assert!(error.as_object().expect("an object").len() == 4, "message, type, param, code: {error}");
        error
    }
}

/// The model of a test server.
#[derive(Debug, Clone, Copy)]
enum Served {
    /// The embedded model on the CPU, which compiles no kernels.
    Embedded,
    /// The same, with proposals by lookup.
    Speculating,
    /// The embedded model on the first GPU or software device.
    EmbeddedOnGpu,
    /// A model of tests/fixtures with random weights, and a template that replaces its own.
    Fixture(&'static str, Option<&'static str>),
}

impl Served {
    fn source(self) -> Rc<dyn Source> {
        let embedded = bayan_embedded::files().iter();
        match self {
            Served::Embedded | Served::Speculating | Served::EmbeddedOnGpu => {
                Rc::new(embedded.fold(MemorySource::new(), |source, &(name, bytes)| source.with(name, bytes)))
            }
            Served::Fixture(name, _) => {
                let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/models/");
                Rc::new(DirectorySource::new(format!("{folder}{name}")).expect("a fixture"))
            }
        }
    }
}

/// Opens a model, and leaves its GPU or software device in `seen`.
fn open(served: Served, seen: &Mutex<Option<Gpu>>) -> Result<Opened, String> {
    let opened = async {
        let checkpoint = Checkpoint::open(served.source()).await.map_err(|error| error.to_string())?;
        let engine = EngineOptions {
            sizes: StepSizes::Listed,
            sequences: SLOTS,
            context: Some(if matches!(served, Served::Fixture(..)) { 1024 } else { CONTEXT }),
            prefill_chunk: Some(32),
            ..Default::default()
        };
        let chat_template = match served {
            Served::Fixture(_, template) => template.map(str::to_string),
            Served::Embedded | Served::Speculating | Served::EmbeddedOnGpu => None,
        };
        let options = ModelOptions { engine, chat_template };
        let model = match served {
            Served::Embedded | Served::Speculating | Served::Fixture(..) => {
                let cpu = Cpu::open(Some(2)).map_err(|error| error.to_string())?;
                Model::open_on_cpu(&checkpoint, &cpu, &options, &mut |_, _| {}).await
            }
            Served::EmbeddedOnGpu => {
                let gpu = Gpu::open(&GpuOptions::default()).await.map_err(|error| error.to_string())?;
                *seen.lock().unwrap() = Some(gpu.clone());
                Model::open(&checkpoint, &gpu, &options, &mut |_, _| {}).await
            }
        };
        let mut model = model.map_err(|error| error.to_string())?;
        if matches!(served, Served::Speculating) {
            model.engine.propose_by_lookup(4).map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(model)
    };
    Ok(Opened { model: block_on(opened)?, defaults: Generation::default(), seed: None })
}

/// A server with default limits and without keys.
fn server() -> Running {
    server_with(ServerOptions { model: "bayan".into(), ..Default::default() })
}

fn limited(limits: Limits) -> Running {
    server_with(ServerOptions { model: "bayan".into(), limits, ..Default::default() })
}

fn server_with(options: ServerOptions) -> Running {
    serve(Served::Embedded, options)
}

/// As [`server`], on the first GPU or software device.
fn server_on_gpu() -> Running {
    serve(Served::EmbeddedOnGpu, ServerOptions { model: "bayan".into(), ..Default::default() })
}

/// A server with a model of the fixtures.
fn fixture(name: &'static str, template: Option<&'static str>) -> Running {
    serve(Served::Fixture(name, template), ServerOptions { model: "bayan".into(), ..Default::default() })
}

fn serve(served: Served, options: ServerOptions) -> Running {
    let gpu = Arc::new(Mutex::new(None));
    let (seen, key) = (gpu.clone(), options.keys.first().cloned());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (send_address, addresses) = mpsc::channel();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::bind("127.0.0.1:0", options, move || open(served, &seen)).await.unwrap();
            send_address.send(server.address().unwrap()).unwrap();
            let stop = async { drop(stopped.await) };
            server.run(stop).await.unwrap();
        });
    };
    let thread = std::thread::spawn(run);
    let address = addresses.recv().expect("the server starts");
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    Running { address, stop: Some(stop), thread: Some(thread), agent: config.into(), key, gpu }
}

impl Running {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asks, with a body or without.
    fn ask(&self, path: &str, body: Option<&[u8]>, headers: &[(&str, &str)]) -> Got {
        let url = self.url(path);
        let mut answer = match body {
            Some(body) => {
                let request = self.agent.post(&url).header("content-type", "application/json");
                headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send(body)
            }
            None => {
                let request = self.agent.get(&url);
                headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).call()
            }
        }
        .unwrap_or_else(|error| panic!("{path}: {error}"));
        let body = answer.body_mut().read_to_vec().unwrap_or_else(|error| panic!("{path}: {error}"));
        let (parts, _) = answer.into_parts();
        let header = |(name, value): (&ureq::http::HeaderName, &ureq::http::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap_or("").to_string())
        };
        Got { status: parts.status.as_u16(), headers: parts.headers.iter().map(header).collect(), body }
    }

    fn authorization(&self) -> String {
        format!("Bearer {}", self.key.as_deref().unwrap_or(""))
    }

    fn get(&self, path: &str) -> Got {
        self.ask(path, None, &[("authorization", &self.authorization())])
    }

    fn post(&self, path: &str, body: &Value) -> Got {
        self.ask(path, Some(body.to_string().as_bytes()), &[("authorization", &self.authorization())])
    }

    fn chat(&self, body: Value) -> Got {
        self.post("/v1/chat/completions", &body)
    }

    fn complete(&self, body: Value) -> Got {
        self.post("/v1/completions", &body)
    }

    /// The value of a metric without labels.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    }

    /// Waits until a metric has a value.
    fn wait_for(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        while !wanted(self.metric(name)) {
            assert!(Instant::now() < until, "{name} is {}", self.metric(name));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks the server to end.
    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server's thread panicked");
        }
    }
}

/// A greedy question.
fn question(text: &str) -> Value {
    json!({"model": "bayan", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 40})
}

/// The same with other fields.
fn with(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// The text of the first choice of a chat.
fn content(value: &Value) -> String {
    value["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{value}")).to_string()
}

/// The data of all events, without the last `[DONE]`.
fn events(body: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(body).expect("the stream is UTF-8");
    let mut data: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.into_iter().map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

/// The data of all events of a stream without `[DONE]`; each has the name that its data has as type.
fn typed_events(body: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(body).expect("the stream is UTF-8");
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ").and_then(|rest| rest.split_once("\ndata: "))?;
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(data["type"], name);
        Some(data)
    };
    text.split("\n\n").filter_map(event).collect()
}
