//! `bayan serve` as a process: its address, its log, its end, and flags that it refuses.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use common::{bayan, fail, run};

/// Ends the process if the test does not.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a request and returns the whole answer.
fn ask(address: &str, method: &str, path: &str, headers: &str, body: &str) -> String {
    let mut socket = TcpStream::connect(address).expect("a connection");
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
    );
    socket.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    answer
}

#[cfg(unix)]
#[test]
fn a_process_answers_logs_and_ends_in_order() {
    let mut command = bayan();
    command.args(["serve", "--port", "0", "--no-warm-up", "--log-format", "json", "--context", "256"]);
    command
        .args(["--parallel", "2", "--served-model-name", "mine", "--drain", "20"])
        .env("BAYAN_API_KEY", "secret-key");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process(command.spawn().expect("the program starts"));
    let mut lines = BufReader::new(process.0.stdout.take().expect("stdout"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line");
    let address = line.trim().strip_prefix("serving mine on http://").unwrap_or_else(|| panic!("{line}")).to_string();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let key = "authorization: Bearer secret-key\r\n";
    assert!(ask(&address, "GET", "/ready", "", "").starts_with("HTTP/1.1 200"));
    assert!(ask(&address, "GET", "/v1/models", "", "").starts_with("HTTP/1.1 401"));
    assert!(ask(&address, "GET", "/v1/models", key, "").contains("\"mine\""));
    let body = r#"{"messages": [{"role": "user", "content": "السلام عليكم"}], "temperature": 0, "max_tokens": 5}"#;
    let answer = ask(&address, "POST", "/v1/chat/completions", key, body);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("وعليكم"), "{answer}");
    let id = process.0.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().expect("kill").success());
    assert_eq!(process.0.wait().expect("an end").code(), Some(0));
    let mut log = String::new();
    process.0.stderr.take().expect("stderr").read_to_string(&mut log).expect("UTF-8");
    assert!(log.contains("2 slots of up to 256 positions, 512 in all"), "{log}");
    let entries: Vec<serde_json::Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let chat = entries.iter().find(|entry| entry["route"] == "/v1/chat/completions").unwrap_or_else(|| panic!("{log}"));
    assert_eq!((&chat["status"], &chat["method"]), (&200.into(), &"POST".into()));
    assert!(!log.contains("السلام") && !log.contains("وعليكم") && !log.contains("secret-key"), "{log}");
}

#[test]
fn wrong_flags_and_open_addresses_are_refused() {
    let error = fail(&run(&["serve", "--host", "0.0.0.0"]), 1);
    assert!(error.contains("--api-key-file") && error.contains("--insecure"), "{error}");
    let error = fail(&run(&["serve", "--cors-origin", "example.org", "--port", "0"]), 1);
    assert!(error.contains("no origin"), "{error}");
    let error = fail(&run(&["serve", "--api-key-file", "no/such/file"]), 1);
    assert!(error.contains("--api-key-file no/such/file"), "{error}");
    fail(&run(&["serve", "--parallel", "0"]), 2);
    fail(&run(&["serve", "--port", "99999"]), 2);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let error = fail(&run(&["serve", "--port", &port]), 1);
    assert!(error.contains("cannot listen on"), "{error}");
}
