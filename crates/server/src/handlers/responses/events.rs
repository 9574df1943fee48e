//! The events of a streamed response.

use bayan_generate::Usage;
use bayan_generate::openai::{Format, Piece, Reader};
use serde_json::{Value, json};

use super::super::stream::{Chunks, Sent};
use super::{About, function_call, item_id, message, part, state};
use crate::error::ApiError;
use crate::exchange::{Call, call_id};
use crate::worker::Reply;

/// The item that is being written.
enum Open {
    Message { id: String, text: String },
    Call { id: String, call: Call },
}

pub(super) struct Events {
    about: About,
    reader: Reader,
    format: Option<Format>,
    open: Option<Open>,
    /// Items that are complete.
    output: Vec<Value>,
    usage: Option<Usage>,
    /// The number of the next event.
    number: u64,
}

impl Events {
    pub(super) fn new(about: About, reader: Reader, format: Option<Format>) -> Events {
        Events { about, reader, format, open: None, output: Vec::new(), usage: None, number: 0 }
    }

    fn event(&mut self, kind: &str, more: Value) -> Sent {
        let mut event = json!({"type": format!("response.{kind}"), "sequence_number": self.number});
        self.number += 1;
        for (name, value) in more.as_object().into_iter().flatten() {
            event[name] = value.clone();
        }
        Sent::typed(event)
    }

    /// Ends the open item.
    fn close(&mut self, status: &str, sent: &mut Vec<Sent>) {
        let at = self.output.len();
        let item = match self.open.take() {
            None => return,
            Some(Open::Message { id, text }) => {
                let place = json!({"item_id": id, "output_index": at, "content_index": 0});
                let with = |name: &str, value: Value| {
                    let mut place = place.clone();
                    place[name] = value;
                    place
                };
                let mut done = with("text", json!(text));
                done["logprobs"] = json!([]);
                sent.push(self.event("output_text.done", done));
                sent.push(self.event("content_part.done", with("part", part(&text))));
                message(&id, &text, status)
            }
            Some(Open::Call { id, call }) => {
                let done = json!({"item_id": id, "output_index": at, "name": call.name, "arguments": call.arguments});
                sent.push(self.event("function_call_arguments.done", done));
                function_call(&id, &call, status)
            }
        };
        sent.push(self.event("output_item.done", json!({"output_index": at, "item": item})));
        self.output.push(item);
    }

    fn begin_message(&mut self, sent: &mut Vec<Sent>) {
        self.close("completed", sent);
        let (id, at) = (item_id("msg"), self.output.len());
        let mut item = message(&id, "", "in_progress");
        item["content"] = json!([]);
        sent.push(self.event("output_item.added", json!({"output_index": at, "item": item})));
        let place = json!({"item_id": id, "output_index": at, "content_index": 0, "part": part("")});
        sent.push(self.event("content_part.added", place));
        self.open = Some(Open::Message { id, text: String::new() });
    }

    fn pieces(&mut self, pieces: Vec<Piece>) -> Vec<Sent> {
        let mut sent = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(more) => {
                    if !matches!(self.open, Some(Open::Message { .. })) {
                        self.begin_message(&mut sent);
                    }
                    let at = self.output.len();
                    if let Some(Open::Message { id, text }) = &mut self.open {
                        text.push_str(&more);
                        let delta = json!({
                            "item_id": id, "output_index": at, "content_index": 0, "delta": more, "logprobs": [],
                        });
                        sent.push(self.event("output_text.delta", delta));
                    }
                }
                Piece::Call(name) => {
                    self.close("completed", &mut sent);
                    let (id, at) = (item_id("fc"), self.output.len());
                    let call = Call { id: call_id(self.format), name, arguments: String::new() };
                    let item = function_call(&id, &call, "in_progress");
                    sent.push(self.event("output_item.added", json!({"output_index": at, "item": item})));
                    self.open = Some(Open::Call { id, call });
                }
                Piece::Arguments(more) => {
                    let at = self.output.len();
                    if let Some(Open::Call { id, call }) = &mut self.open {
                        call.arguments.push_str(&more);
                        let delta = json!({"item_id": id, "output_index": at, "delta": more});
                        sent.push(self.event("function_call_arguments.delta", delta));
                    }
                }
            }
        }
        sent
    }
}

impl Chunks for Events {
    fn begin(&mut self) -> Vec<Sent> {
        let response = self.about.response("in_progress", Vec::new(), None);
        ["created", "in_progress"].map(|kind| self.event(kind, json!({"response": response}))).into()
    }

    fn reply(&mut self, _choice: usize, reply: Reply) -> Vec<Sent> {
        match reply {
            Reply::Token { text, .. } => {
                let pieces = self.reader.push(&text);
                self.pieces(pieces)
            }
            Reply::Ended { text, usage, .. } => {
                let mut pieces = self.reader.push(&text);
                pieces.extend(self.reader.end());
                let mut sent = self.pieces(pieces);
                if self.open.is_none() && self.output.is_empty() {
                    self.begin_message(&mut sent);
                }
                self.close(state(&usage), &mut sent);
                self.usage = Some(usage);
                sent
            }
            Reply::Prompt(_) | Reply::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Sent> {
        let Some(usage) = self.usage.take() else { return Vec::new() };
        let state = state(&usage);
        let response = self.about.response(state, self.output.clone(), Some(&usage));
        vec![self.event(state, json!({"response": response}))]
    }

    fn done(&self) -> Option<Sent> {
        None
    }

    fn failed(&mut self, error: &ApiError) -> Sent {
        let code = error.code.unwrap_or("server_error");
        self.event(
            "failed",
            json!({"response": {
                "id": self.about.id,
                "object": "response",
                "created_at": self.about.created,
                "model": self.about.model,
                "status": "failed",
                "output": self.output,
                "error": {"code": code, "message": error.message},
            }}),
        )
    }
}
