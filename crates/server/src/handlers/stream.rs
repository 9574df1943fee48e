//! Answers as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::error::ApiError;
use crate::worker::Reply;

/// A comment is sent when nothing else came for this long, so that no proxy closes the connection.
const SILENCE: Duration = Duration::from_secs(15);

/// An event: its name, where the protocol has one, and its data.
#[derive(Debug)]
pub(crate) struct Sent {
    name: Option<String>,
    data: String,
}

impl From<Value> for Sent {
    fn from(data: Value) -> Sent {
        Sent { name: None, data: data.to_string() }
    }
}

impl Sent {
    /// An event with the name that its data has as `type`.
    pub(crate) fn typed(data: Value) -> Sent {
        Sent { name: data["type"].as_str().map(str::to_string), data: data.to_string() }
    }
}

/// Turns replies into the events of a route.
pub(crate) trait Chunks: Send + 'static {
    /// Events before the first reply.
    fn begin(&mut self) -> Vec<Sent>;
    /// Events of a reply of one answer.
    fn reply(&mut self, choice: usize, reply: Reply) -> Vec<Sent>;
    /// Events after all answers.
    fn end(&mut self) -> Vec<Sent>;
    /// The last event of all, after a good end.
    fn done(&self) -> Option<Sent> {
        Some(Sent { name: None, data: "[DONE]".into() })
    }
    /// The last event after an error.
    fn failed(&mut self, error: &ApiError) -> Sent {
        error.body().into()
    }
}

struct State<C> {
    chunks: C,
    replies: UnboundedReceiver<(usize, Reply)>,
    /// Answers that have not ended.
    unfinished: usize,
    /// Events that are sent before the next reply is read.
    next: VecDeque<Sent>,
}

/// The stream of `count` answers. It ends with the protocol's last event, or with one error.
pub(crate) fn respond<C: Chunks>(replies: UnboundedReceiver<(usize, Reply)>, count: usize, mut chunks: C) -> Response {
    let next = chunks.begin().into();
    let state = State { chunks, replies, unfinished: count, next };
    let stream = futures_util::stream::unfold(state, |mut state| async move {
        loop {
            if let Some(Sent { name, data }) = state.next.pop_front() {
                let event = name.map_or_else(Event::default, |name| Event::default().event(name));
                return Some((Ok::<Event, Infallible>(event.data(data)), state));
            }
            if state.unfinished == 0 {
                return None;
            }
            let reply = state.replies.recv().await;
            state.take(reply);
        }
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(SILENCE)).into_response()
}

impl<C: Chunks> State<C> {
    fn take(&mut self, reply: Option<(usize, Reply)>) {
        let ended = || ApiError::unavailable("engine_ended", "the engine ended before the answer; try again later");
        let (choice, reply) = match reply {
            Some((choice, Reply::Failed(error))) => (choice, Err(error)),
            Some((choice, reply)) => (choice, Ok(reply)),
            None => (0, Err(ended())),
        };
        match reply {
            Ok(reply) => {
                let last = matches!(reply, Reply::Ended { .. });
                self.next.extend(self.chunks.reply(choice, reply));
                self.unfinished -= usize::from(last);
                if self.unfinished == 0 {
                    self.next.extend(self.chunks.end());
                    self.next.extend(self.chunks.done());
                }
            }
            Err(error) => {
                self.next.push_back(self.chunks.failed(&error));
                self.unfinished = 0;
            }
        }
    }
}
