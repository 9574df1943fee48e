//! Clients that go away free their row, and others do not change.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::{Running, content, question, server_on_gpu, with};

/// Sends a request without reading its answer.
fn send(server: &Running, body: &Value) -> TcpStream {
    let mut socket = TcpStream::connect(server.address).unwrap();
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).unwrap();
    socket.write_all(body.as_bytes()).unwrap();
    socket
}

#[test]
fn clients_that_leave_free_their_rows() {
    let server = server_on_gpu();
    let long = with(question("س"), json!({"ignore_eos": true, "max_tokens": 230}));
    let expected = content(&server.chat(question("كيف أصنع الشاي؟")).good());
    // In the middle of a stream, and waiting for a whole answer.
    let mut stream = send(&server, &with(long.clone(), json!({"stream": true})));
    let mut first = [0u8; 200];
    stream.read_exact(&mut first).unwrap();
    let whole = send(&server, &long);
    server.wait_for("bayan_requests_running", |running| running == 2.0);
    // In the queue.
    let queued = send(&server, &long);
    server.wait_for("bayan_requests_queued", |queued| queued == 1.0);
    drop(queued);
    server.wait_for("bayan_requests_queued", |queued| queued == 0.0);
    drop(stream);
    server.wait_for("bayan_requests_running", |running| running == 1.0);
    // The free row answers while the other still runs, and its answer is the one from before.
    assert_eq!(content(&server.chat(question("كيف أصنع الشاي؟")).good()), expected);
    drop(whole);
    server.wait_for("bayan_requests_running", |running| running == 0.0);
    assert_eq!(server.metric("bayan_requests_cancelled_total"), 3.0);
}
