//! Limits of requests, each with a clear answer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bayan_server::Limits;
use serde_json::json;

use crate::{CONTEXT, content, limited, question, server, with};

#[test]
fn what_is_too_large_is_refused() {
    let server = limited(Limits { body_bytes: 4000, max_tokens: Some(50), ..Default::default() });
    let error = server.chat(question(&"س".repeat(3000))).error(413);
    assert!(error["message"].as_str().unwrap().contains("4000 bytes"), "{error}");
    let error = server.chat(with(question("س"), json!({"max_tokens": 51}))).error(400);
    assert!(error["message"].as_str().unwrap().contains("at most 50"), "{error}");
    let error = server.chat(question(&"سؤال طويل ".repeat(180))).error(400);
    assert_eq!(error["code"], "context_length_exceeded");
    assert!(error["message"].as_str().unwrap().contains(&format!("holds {CONTEXT}")), "{error}");
    // Without a number the server's limit holds.
    let body = json!({"messages": [{"role": "user", "content": "س"}], "ignore_eos": true, "temperature": 0});
    assert_eq!(server.chat(body).good()["usage"]["completion_tokens"], 50);
    assert!(!content(&server.chat(question("السلام عليكم")).good()).is_empty());
}

#[test]
fn an_answer_ends_with_the_context() {
    let server = server();
    let body = json!({"messages": [{"role": "user", "content": "س"}], "ignore_eos": true, "temperature": 0});
    let answer = server.chat(body).good();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["total_tokens"], CONTEXT);
}

#[test]
fn a_full_queue_refuses_and_a_slow_one_gives_up() {
    let limits = Limits { queue: 3, queue_time: Duration::from_millis(50), ..Default::default() };
    let server = limited(limits);
    let long = with(question("س"), json!({"ignore_eos": true, "max_tokens": 200}));
    let error = server.chat(with(long.clone(), json!({"n": 4}))).error(429);
    assert_eq!((&error["code"], &error["type"]), (&json!("queue_full"), &json!("rate_limit_error")));
    let got = server.chat(with(long.clone(), json!({"n": 4})));
    assert_eq!(got.header("retry-after"), Some("1"));
    // Two answers run, the third waits too long; in a stream the error is its last event.
    let body = with(long, json!({"n": 3, "stream": true}));
    let text = server.chat(body.clone()).text();
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.contains("queue_timeout") && !text.contains("[DONE]"), "{last}");
    server.chat(with(body, json!({"stream": false}))).error(503);
    // Both rows are free again.
    server.wait_for("bayan_requests_running", |running| running == 0.0);
    server.chat(question("السلام عليكم")).good();
}

#[test]
fn an_answer_that_takes_too_long_is_ended() {
    let server = limited(Limits { answer_time: Duration::from_millis(1), ..Default::default() });
    let error = server.chat(with(question("س"), json!({"ignore_eos": true, "max_tokens": 200}))).error(504);
    assert_eq!(error["code"], "answer_timeout");
    server.wait_for("bayan_requests_running", |running| running == 0.0);
}

#[test]
fn a_request_that_never_ends_is_refused() {
    let server = limited(Limits { receive_time: Duration::from_millis(200), ..Default::default() });
    let mut socket = TcpStream::connect(server.address).unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\n\r\n{\"messages\"";
    socket.write_all(head.as_bytes()).unwrap();
    let mut answer = [0u8; 64];
    let count = socket.read(&mut answer).unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
}
