//! What the server allows.

use std::path::PathBuf;
use std::time::Duration;

/// Limits of requests.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest body of a request.
    pub body_bytes: usize,
    /// Most new tokens of an answer, and their number when a request names none; `None`: as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Most requests that wait for a slot; more are refused.
    pub queue: usize,
    /// Longest time in the queue.
    pub queue_time: Duration,
    /// Longest time of an answer, from the end of the queue on.
    pub answer_time: Duration,
    /// Longest time until the whole request has been received.
    pub receive_time: Duration,
    /// Most answers to one request (`n`, or prompts times `n`).
    pub choices: usize,
    /// Longest time that running answers have to finish when the server ends.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body_bytes: 4 << 20,
            max_tokens: None,
            queue: 256,
            queue_time: Duration::from_secs(120),
            answer_time: Duration::from_secs(3600),
            receive_time: Duration::from_secs(60),
            choices: 128,
            drain_time: Duration::from_secs(30),
        }
    }
}

/// Options of a server.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    /// The model's name in `/v1/models`.
    pub model: String,
    /// Adapters that are loaded at the start: names, and directories in PEFT's layout.
    pub adapters: Vec<(String, PathBuf)>,
    /// Requests may load adapters from this directory; `None`: they may load none.
    pub adapter_dir: Option<PathBuf>,
    /// Limits of requests.
    pub limits: Limits,
    /// Keys that clients must show one of; without any, everybody may ask.
    pub keys: Vec<String>,
    /// Origins of web pages that may read answers; `*` allows all.
    pub origins: Vec<String>,
    /// Values of the Host header that are answered, without ports; empty: all.
    pub hosts: Vec<String>,
    /// Whether the chat page is at `/`.
    pub ui: bool,
}
