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

/// Turns replies into the chunks of a route.
pub(crate) trait Chunks: Send + 'static {
    /// Chunks before the first reply.
    fn begin(&mut self) -> Vec<Value>;
    /// Chunks of a reply of one answer.
    fn reply(&mut self, choice: usize, reply: Reply) -> Vec<Value>;
    /// Chunks after all answers.
    fn end(&mut self) -> Vec<Value>;
}

struct State<C> {
    chunks: C,
    replies: UnboundedReceiver<(usize, Reply)>,
    /// Answers that have not ended.
    unfinished: usize,
    /// Events that are sent before the next reply is read.
    next: VecDeque<String>,
}

/// The stream of `count` answers. It ends with `[DONE]`, or with one error.
pub(crate) fn respond<C: Chunks>(replies: UnboundedReceiver<(usize, Reply)>, count: usize, mut chunks: C) -> Response {
    let next = chunks.begin().iter().map(Value::to_string).collect();
    let state = State { chunks, replies, unfinished: count, next };
    let stream = futures_util::stream::unfold(state, |mut state| async move {
        loop {
            if let Some(data) = state.next.pop_front() {
                return Some((Ok::<Event, Infallible>(Event::default().data(data)), state));
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
                self.next.extend(self.chunks.reply(choice, reply).iter().map(Value::to_string));
                self.unfinished -= usize::from(last);
                if self.unfinished == 0 {
                    self.next.extend(self.chunks.end().iter().map(Value::to_string));
                    self.next.push_back("[DONE]".into());
                }
            }
            Err(error) => {
                self.next.push_back(error.body().to_string());
                self.unfinished = 0;
            }
        }
    }
}
