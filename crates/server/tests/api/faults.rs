//! A lost device, and the end of the server.

use std::time::Duration;

use bayan_server::Limits;
use serde_json::json;

use crate::{content, events, limited, question, server, with};

#[test]
fn a_lost_device_is_replaced() {
    let server = server();
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
