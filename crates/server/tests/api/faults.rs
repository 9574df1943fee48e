//! A lost device, clients that stall, and the end of the server.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bayan_server::Limits;
use serde_json::json;

use crate::{Running, content, events, limited, question, server, server_on_gpu, with};

#[test]
fn a_lost_device_is_replaced() {
    let server = server_on_gpu();
    let before = content(&server.chat(question("ما اسمك؟")).good());
    server.gpu.lock().unwrap().as_ref().expect("a device").destroy();
    let error = server.chat(question("ما اسمك؟")).error(503);
    assert_eq!(error["code"], "device_lost");
    server.wait_for("bayan_recoveries_total", |count| count == 1.0);
    assert_eq!(server.get("/ready").status, 200);
    assert_eq!(content(&server.chat(question("ما اسمك؟")).good()), before);
}

#[test]
fn the_server_ends_after_its_answers() {
    let mut server = limited(Limits { drain_time: Duration::from_secs(60), ..Default::default() });
    let long = with(question("س"), json!({"ignore_eos": true, "max_tokens": 200, "stream": true}));
    let (url, body) = (server.url("/v1/chat/completions"), long.to_string());
    let agent = server.agent.clone();
    let asking = std::thread::spawn(move || agent.post(&url).send(body).unwrap().body_mut().read_to_vec().unwrap());
    server.wait_for("bayan_requests_running", |running| running == 1.0);
    server.end();
    // Still there, and not ready for more.
    let mut ready = server.get("/ready");
    for _ in 0..50 {
        if ready.status == 503 {
            break;
        }
        ready = server.get("/ready");
    }
    assert_eq!(ready.error(503)["code"], "shutting_down");
    assert_eq!(server.chat(question("س")).error(503)["code"], "shutting_down");
    assert_eq!(server.get("/health").status, 200);
    let chunks = events(&asking.join().unwrap());
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length", "the running answer is whole");
    let thread = server.thread.take().unwrap();
    thread.join().unwrap();
}

/// Connections that send a part of a request and nothing more, and never read.
fn half_open(server: &Running, count: usize) -> Vec<TcpStream> {
    let parts: [&[u8]; 4] = [
        b"",
        b"POST /v1/chat/compl",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 90\r\n\r\n{\"messages\": [",
    ];
    (0..count)
        .map(|number| {
            let mut socket = TcpStream::connect(server.address).unwrap();
            socket.write_all(parts[number % parts.len()]).unwrap();
            socket
        })
        .collect()
}

/// Asks for a long stream of which nothing is read.
fn without_reading(server: &Running) -> TcpStream {
    let body = with(
        question("س"),
        json!({"ignore_eos": true, "max_tokens": 200, "stream": true, "logprobs": true,
        "top_logprobs": 20}),
    )
    .to_string();
    let mut socket = TcpStream::connect(server.address).unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: ";
    write!(socket, "{head}{}\r\n\r\n{body}", body.len()).unwrap();
    socket
}

#[test]
fn stalled_clients_hold_no_slot() {
    let server = server();
    let before = content(&server.chat(question("ما اسمك؟")).good());
    let stalled = (half_open(&server, 40), [without_reading(&server), without_reading(&server)]);
    server.wait_for("bayan_requests_running", |running| running == 2.0);
    assert_eq!(content(&server.chat(question("ما اسمك؟")).good()), before);
    server.wait_for("bayan_requests_running", |running| running == 0.0);
    assert_eq!(server.metric("bayan_requests_cancelled_total"), 0.0, "the unread answers were computed");
    drop(stalled);
}

#[test]
fn an_end_under_load_loses_no_answer() {
    let mut server = limited(Limits { drain_time: Duration::from_secs(60), ..Default::default() });
    let expected = content(&server.chat(question("ما عاصمة مصر؟")).good());
    // Beside clients that stall.
    let stalled = (half_open(&server, 8), without_reading(&server));
    server.wait_for("bayan_requests_running", |running| running == 1.0);
    // One of the six has the other slot at first, five wait.
    let body = with(question("ما عاصمة مصر؟"), json!({"n": 6})).to_string();
    let (agent, url) = (server.agent.clone(), server.url("/v1/chat/completions"));
    let asking = std::thread::spawn(move || agent.post(&url).send(body).unwrap().body_mut().read_to_vec().unwrap());
    server.wait_for("bayan_requests_queued", |queued| queued >= 2.0);
    server.end();
    let answer: serde_json::Value = serde_json::from_slice(&asking.join().unwrap()).unwrap();
    let texts = answer["choices"].as_array().unwrap_or_else(|| panic!("{answer}")).iter();
    let texts: Vec<&str> = texts.map(|choice| choice["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(texts, [expected.as_str(); 6]);
    let start = Instant::now();
    server.thread.take().unwrap().join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "stalled clients kept the server: {:?}", start.elapsed());
    drop(stalled);
}
