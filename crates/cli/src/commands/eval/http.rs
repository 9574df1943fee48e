//! Requests to servers with OpenAI's interface.

use std::time::Duration;

use bayan_evaluate::{EvalError, Result};
use serde_json::Value;

/// Tries of a request that the server has no room for.
const TRIES: u32 = 5;
/// The longest wait that a server may ask for, in seconds.
const LONGEST_WAIT: u64 = 60;
const LARGEST_ANSWER_BYTES: u64 = 256 << 20;

/// One address of a server.
#[derive(Clone)]
pub struct Endpoint {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
}

impl Endpoint {
    /// The address `path` of the server at `base`, which may end in `/v1`.
    pub fn new(base: &str, path: &str, key: Option<String>) -> Endpoint {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(3600)))
            .build();
        let url = format!("{}/v1/{path}", base.trim_end_matches('/').trim_end_matches("/v1"));
        Endpoint { agent: ureq::Agent::from(config), url, key: key.filter(|key| !key.is_empty()) }
    }

    /// The error for an answer that is not as expected.
    pub fn unexpected(&self, expected: &str, got: impl Into<String>) -> EvalError {
        EvalError::Unexpected {
            what: self.url.clone(),
            expected: expected.into(),
            got: got.into(),
            remedy: "check the address, the key and the server's log".into(),
        }
    }

    /// Sends a body and returns the answer. A server that has no room (429, 503) is asked again.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or answers with something else than JSON.
    pub fn post(&self, body: &Value) -> Result<Value> {
        let body = body.to_string();
        for again in 1.. {
            let mut request = self.agent.post(&self.url).header("content-type", "application/json");
            if let Some(key) = &self.key {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            let mut answer =
                request.send(body.as_str()).map_err(|error| self.unexpected("an answer", error.to_string()))?;
            let wait = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let text = answer.body_mut().with_config().limit(LARGEST_ANSWER_BYTES).read_to_string();
            let text = text.map_err(|error| self.unexpected("an answer", error.to_string()))?;
            let shown = || text.chars().take(300).collect::<String>();
            match answer.status().as_u16() {
                200 => {
                    return serde_json::from_str(&text).map_err(|_| self.unexpected("an answer in JSON", shown()));
                }
                429 | 503 if again < TRIES => {
                    let seconds: u64 = wait.unwrap_or(u64::from(again));
                    std::thread::sleep(Duration::from_secs(seconds.min(LONGEST_WAIT)));
                }
                status => return Err(self.unexpected("status 200", format!("{status}: {}", shown()))),
            }
        }
        Err(self.unexpected("an answer", "none"))
    }
}
