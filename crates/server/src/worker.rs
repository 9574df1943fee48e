//! The thread that owns the model: takes submissions, advances the engine, and sends replies.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use bayan_generate::{
    Adapter, AnswerText, Event, FinishReason, Generation, Job, JobId, Model, TextPipeline, TokenScore, Usage,
};
use bayan_gpu::block_on;
use bayan_weights::DirectorySource;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::error::ApiError;
use crate::limits::Limits;
use crate::metrics::Metrics;

/// An opened model and the settings of requests that name none.
pub struct Opened {
    /// The model.
    pub model: Model,
    /// The settings.
    pub defaults: Generation,
    /// The seed; `None`: another one for every request.
    pub seed: Option<u64>,
}

/// Opens the model; called on the worker's thread, and again after the device failed.
pub(crate) type Open = Box<dyn Fn() -> Result<Opened, String> + Send>;

/// What handlers know of the model.
pub(crate) struct About {
    /// Tokenizer, chat template, stop tokens.
    pub(crate) text: TextPipeline,
    pub(crate) defaults: Generation,
    pub(crate) seed: Option<u64>,
    pub(crate) context: usize,
    pub(crate) vocabulary: usize,
    /// Answers that are computed together.
    pub(crate) slots: usize,
}

/// One answer that a request wants.
pub(crate) struct Submission {
    pub(crate) job: Job,
    pub(crate) stop: Vec<String>,
    /// The number of the answer within its request.
    pub(crate) choice: usize,
    pub(crate) replies: UnboundedSender<(usize, Reply)>,
    pub(crate) arrived: Instant,
}

/// What the worker sends of an answer.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Scores of further tokens of the prompt.
    Prompt(Vec<TokenScore>),
    /// A token, and the text that is certain with it.
    Token { id: u32, score: Option<TokenScore>, text: String },
    /// The rest of the text, and why the answer ended; the last reply.
    Ended {
        text: String,
        usage: Usage,
        /// The stop text that ended the answer.
        stop: Option<String>,
    },
    /// The answer failed; the last reply.
    Failed(ApiError),
}

/// State that handlers and the worker share.
pub(crate) struct Shared {
    pub(crate) ready: AtomicBool,
    pub(crate) draining: AtomicBool,
    /// Submissions without a slot, and with one.
    waiting: AtomicUsize,
    running: AtomicUsize,
    /// The loaded adapters, and where they are from.
    pub(crate) adapters: Mutex<BTreeMap<String, PathBuf>>,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Limits,
}

impl Shared {
    pub(crate) fn new(model: &str, limits: Limits) -> Shared {
        Shared {
            ready: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            adapters: Mutex::default(),
            metrics: Metrics::new(model),
            limits,
        }
    }

    /// Takes places in the queue, or says that there are not enough.
    pub(crate) fn enqueue(&self, adapter: Option<&str>, count: usize) -> Result<(), ApiError> {
        let fits = |waiting: usize| (waiting + count <= self.limits.queue).then_some(waiting + count);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).map(drop).map_err(|waiting| {
            let message = format!(
                "the queue is full: {waiting} answers wait, {count} more were asked for, and {} may wait; try again later",
                self.limits.queue
            );
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
        })?;
        self.metrics.models.queue(adapter, count as i64);
        self.show();
        Ok(())
    }

    /// Number of answers that are queued or running.
    pub(crate) fn unfinished(&self) -> usize {
        self.waiting.load(Ordering::Acquire) + self.running.load(Ordering::Acquire)
    }

    /// The loaded adapters, and where they are from.
    pub(crate) fn adapters(&self) -> MutexGuard<'_, BTreeMap<String, PathBuf>> {
        // A panic in between leaves the map as it was.
        self.adapters.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Loads all adapters into a model that was opened.
    fn load_all(&self, model: &mut Model) -> Result<(), String> {
        for (name, path) in self.adapters().iter() {
            let adapter = read_adapter(path)?;
            model.engine.load_adapter(name, &adapter).map_err(|error| format!("adapter {name}: {error}"))?;
        }
        Ok(())
    }

    fn started(&self, adapter: Option<&str>) {
        self.running.fetch_add(1, Ordering::AcqRel);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.metrics.models.queue(adapter, -1);
        self.metrics.models.run(adapter, 1);
        self.show();
    }

    fn ended(&self, adapter: Option<&str>, running: bool) {
        if running { &self.running } else { &self.waiting }.fetch_sub(1, Ordering::AcqRel);
        let models = &self.metrics.models;
        if running {
            models.run(adapter, -1)
        } else {
            models.queue(adapter, -1)
        }
        self.show();
    }

    fn show(&self) {
        self.metrics.queued.set(self.waiting.load(Ordering::Acquire) as i64);
        self.metrics.running.set(self.running.load(Ordering::Acquire) as i64);
    }
}

/// A submission that the engine knows.
struct Answering {
    choice: usize,
    replies: UnboundedSender<(usize, Reply)>,
    text: AnswerText,
    adapter: Option<String>,
    arrived: Instant,
    /// When it got its slot.
    started: Option<Instant>,
    /// When its last token came.
    last: Option<Instant>,
    /// Why its grammar failed.
    fault: Option<String>,
}

impl Answering {
    fn send(&self, reply: Reply) {
        // A client that went away is noticed before the next step.
        let _ = self.replies.send((self.choice, reply));
    }
}

/// What the worker is asked.
pub(crate) enum Message {
    /// To answer.
    Answer(Box<Submission>),
    /// To load an adapter from a directory, or with `None` to unload it.
    Adapter { name: String, from: Option<PathBuf>, done: oneshot::Sender<Result<(), ApiError>> },
    /// To end.
    End,
}

/// A running worker.
pub(crate) struct Started {
    pub(crate) about: About,
    pub(crate) submit: Sender<Message>,
    pub(crate) thread: JoinHandle<()>,
}

/// Starts the worker, and waits until the model is open.
///
/// # Errors
/// The message of an error that the model could not be opened with.
pub(crate) fn start(open: Open, shared: Arc<Shared>, adapters: &[(String, PathBuf)]) -> Result<Started, String> {
    *shared.adapters() = adapters.iter().cloned().collect();
    adapters.iter().for_each(|(name, _)| shared.metrics.models.loaded(Some(name)));
    let (opened_to, opened) = mpsc::channel();
    let (submit, submissions) = mpsc::channel();
    let run = move || {
        let opened = open().and_then(|mut opened| shared.load_all(&mut opened.model).map(|()| opened));
        let Opened { model, defaults, seed } = match opened {
            Ok(opened) => opened,
            Err(error) => return drop(opened_to.send(Err(error))),
        };
        let text = TextPipeline {
            tokenizer: model.tokenizer.clone(),
            template: model.template.clone(),
            stop: model.stop.clone(),
            defaults: model.defaults.clone(),
        };
        let (context, vocabulary) = (model.engine.context(), model.engine.decoder().sizes().vocab_size);
        let slots = model.engine.sequences();
        drop(opened_to.send(Ok(About { text, defaults, seed, context, vocabulary, slots })));
        Worker { model, answers: HashMap::new(), held: VecDeque::new(), shared }.run(&submissions, &open);
    };
    let thread = std::thread::Builder::new().name("bayan-engine".into()).spawn(run);
    let thread = thread.map_err(|error| error.to_string())?;
    let about = opened.recv().map_err(|_| "the engine's thread ended".to_string())??;
    Ok(Started { about, submit, thread })
}

struct Worker {
    model: Model,
    answers: HashMap<JobId, Answering>,
    held: VecDeque<Box<Submission>>,
    shared: Arc<Shared>,
}

/// Time between two tries to open the model again.
const RETRY: Duration = Duration::from_secs(2);

impl Worker {
    fn run(mut self, submissions: &Receiver<Message>, open: &Open) {
        let engine = &self.model.engine;
        let metrics = &self.shared.metrics;
        metrics.slots.set(engine.slots() as i64);
        metrics.positions.set(engine.cache_positions().0 as i64);
        loop {
            if self.answers.is_empty() && self.held.is_empty() {
                self.show_memory();
                match submissions.recv() {
                    Ok(Message::Answer(submission)) => self.held.push_back(submission),
                    Ok(Message::Adapter { name, from, done }) => drop(done.send(self.adapter(name, from))),
                    Ok(Message::End) | Err(_) => return,
                }
            }
            loop {
                match submissions.try_recv() {
                    Ok(Message::Answer(submission)) => self.held.push_back(submission),
                    Ok(Message::Adapter { name, from, done }) => drop(done.send(self.adapter(name, from))),
                    Ok(Message::End) => return self.fail_all(&ending()),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            while let Some(submission) = self.held.pop_front() {
                self.take(*submission);
            }
            self.end_some();
            if let Err(error) = self.advance() {
                tracing::error!(error = %error, "the engine failed; opening the model again");
                self.fail_all(&lost());
                self.shared.ready.store(false, Ordering::Release);
                if !self.recover(submissions, open) {
                    return;
                }
            }
        }
    }

    /// Loads an adapter from a directory, or unloads it.
    fn adapter(&mut self, name: String, from: Option<PathBuf>) -> Result<(), ApiError> {
        let engine = &mut self.model.engine;
        let Some(path) = from else {
            return match engine.unload_adapter(&name) {
                Ok(true) => {
                    self.shared.adapters().remove(&name);
                    self.shared.metrics.models.unloaded(&name);
                    Ok(())
                }
                Ok(false) => {
                    Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", format!("no adapter `{name}`")))
                }
                Err(error) => Err(ApiError::new(StatusCode::CONFLICT, "adapter_in_use", error.to_string())),
            };
        };
        let wrong = |error: String| ApiError::field("lora_path", format!("`lora_path`: {error}"));
        let adapter = read_adapter(&path).map_err(wrong)?;
        engine.load_adapter(&name, &adapter).map_err(|error| wrong(error.to_string()))?;
        self.shared.metrics.models.loaded(Some(&name));
        self.shared.adapters().insert(name, path);
        Ok(())
    }

    fn take(&mut self, submission: Submission) {
        let Submission { job, stop, choice, replies, arrived } = submission;
        let text = AnswerText::new(&self.model.tokenizer, &stop, job.grammar.is_some());
        let adapter = job.adapter.clone();
        let answering = Answering { choice, replies, text, adapter, arrived, started: None, last: None, fault: None };
        match self.model.engine.add(job) {
            Ok(id) => drop(self.answers.insert(id, answering)),
            Err(error) => {
                self.shared.ended(answering.adapter.as_deref(), false);
                answering.send(Reply::Failed(ApiError::request(error.to_string())));
            }
        }
    }

    /// Ends answers whose client went away, and those that took too long.
    fn end_some(&mut self) {
        let limits = &self.shared.limits;
        let mut ended = Vec::new();
        for (&id, answer) in &self.answers {
            let late = match answer.started {
                None => answer.arrived.elapsed() > limits.queue_time,
                Some(started) => started.elapsed() > limits.answer_time,
            };
            if answer.replies.is_closed() {
                self.shared.metrics.cancelled.inc();
                ended.push((id, None));
            } else if late {
                ended.push((id, Some(too_late(answer.started.is_some(), limits))));
            }
        }
        for (id, error) in ended {
            self.model.engine.cancel(id);
            if let Some(answer) = self.answers.remove(&id) {
                self.shared.ended(answer.adapter.as_deref(), answer.started.is_some());
                error.into_iter().for_each(|error| answer.send(Reply::Failed(error)));
            }
        }
    }

    fn advance(&mut self) -> Result<(), String> {
        let Worker { model, answers, shared, .. } = self;
        let preemptions = model.engine.preemptions();
        let advanced = block_on(model.engine.advance(&mut |id, event| on_event(answers, shared, id, event)));
        shared.metrics.cached.set(model.engine.cached_tokens() as i64);
        let (positions, free) = model.engine.cache_positions();
        shared.metrics.taken.set((positions - free) as i64);
        shared.metrics.preemptions.inc_by(model.engine.preemptions() - preemptions);
        advanced.map(drop).map_err(|error| error.to_string())
    }

    fn fail_all(&mut self, error: &ApiError) {
        for (_, answer) in self.answers.drain() {
            self.shared.ended(answer.adapter.as_deref(), answer.started.is_some());
            answer.send(Reply::Failed(error.clone()));
        }
    }

    /// Opens the model again; submissions are refused until it is open. Returns whether anybody still submits.
    fn recover(&mut self, submissions: &Receiver<Message>, open: &Open) -> bool {
        loop {
            match open().and_then(|mut opened| self.shared.load_all(&mut opened.model).map(|()| opened)) {
                Ok(opened) => {
                    self.model = opened.model;
                    self.shared.metrics.recoveries.inc();
                    self.shared.ready.store(true, Ordering::Release);
                    return true;
                }
                Err(error) => tracing::error!(error = %error, "the model cannot be opened again; trying once more"),
            }
            let until = Instant::now() + RETRY;
            loop {
                match submissions.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(Message::End) => return false,
                    Ok(Message::Adapter { done, .. }) => drop(done.send(Err(lost()))),
                    Ok(Message::Answer(submission)) => {
                        self.shared.ended(submission.job.adapter.as_deref(), false);
                        let _ = submission.replies.send((submission.choice, Reply::Failed(lost())));
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return false,
                }
            }
        }
    }

    fn show_memory(&self) {
        let bytes = self.model.engine.allocated_bytes();
        self.shared.metrics.device_bytes.set(bytes as i64);
    }
}

fn on_event(answers: &mut HashMap<JobId, Answering>, shared: &Shared, id: JobId, event: Event) -> ControlFlow<()> {
    // An answer that was cancelled is gone already.
    let Some(answer) = answers.get_mut(&id) else { return ControlFlow::Break(()) };
    match event {
        Event::Started { .. } => {
            answer.started = Some(Instant::now());
            shared.started(answer.adapter.as_deref());
        }
        Event::Fault(problem) => answer.fault = Some(problem),
        Event::Prompt(scores) => answer.send(Reply::Prompt(scores)),
        Event::Token { id, score } => {
            let now = Instant::now();
            let since = answer.last.unwrap_or(answer.arrived);
            shared.metrics.waited(answer.last.is_none(), now - since);
            if answer.last.is_none() {
                shared.metrics.models.first_token(answer.adapter.as_deref(), now - since);
            }
            shared.metrics.new_tokens.inc();
            answer.last = Some(now);
            let text = match answer.text.push(id) {
                Ok(text) => text,
                Err(error) => {
                    tracing::error!(error = %error, "a token cannot be decoded");
                    String::new()
                }
            };
            answer.send(Reply::Token { id, score, text });
            if answer.text.stopped() {
                return ControlFlow::Break(());
            }
        }
        Event::Ended(mut usage) => {
            let text = answer.text.end();
            let stop = answer.text.stop_text().map(str::to_string);
            if stop.is_some() {
                usage.finish = FinishReason::Stop;
            }
            shared.metrics.prompt_tokens.inc_by(usage.prompt_tokens as u64);
            shared.metrics.cached_prompt_tokens.inc_by(usage.cached_tokens as u64);
            shared.metrics.proposed_tokens.inc_by((usage.accepted_tokens + usage.rejected_tokens) as u64);
            shared.metrics.accepted_tokens.inc_by(usage.accepted_tokens as u64);
            shared.metrics.models.ended(answer.adapter.as_deref(), &usage);
            shared.ended(answer.adapter.as_deref(), true);
            let failed = answer.fault.take().map(|problem| Reply::Failed(grammar_fault(&problem)));
            answer.send(failed.unwrap_or(Reply::Ended { text, usage, stop }));
            answers.remove(&id);
        }
    }
    ControlFlow::Continue(())
}

fn lost() -> ApiError {
    ApiError::unavailable("device_lost", "the device failed and the model is being opened again; try again later")
}

fn ending() -> ApiError {
    ApiError::unavailable("shutting_down", "the server ended before the answer")
}

/// Reads an adapter in PEFT's layout.
fn read_adapter(path: &Path) -> Result<Adapter, String> {
    let source = DirectorySource::new(path).map_err(|error| error.to_string())?;
    block_on(Adapter::open(Rc::new(source))).map_err(|error| error.to_string())
}

fn grammar_fault(problem: &str) -> ApiError {
    let message = format!("the grammar of the answer failed: {problem}; use a simpler schema or grammar");
    ApiError::new(StatusCode::BAD_REQUEST, "grammar_fault", message)
}

fn too_late(started: bool, limits: &Limits) -> ApiError {
    if started {
        let message =
            format!("the answer took longer than {} s; ask for fewer tokens", limits.answer_time.as_secs_f64());
        return ApiError::new(StatusCode::GATEWAY_TIMEOUT, "answer_timeout", message);
    }
    let message = format!("no slot became free within {} s; try again later", limits.queue_time.as_secs_f64());
    ApiError::unavailable("queue_timeout", message)
}
