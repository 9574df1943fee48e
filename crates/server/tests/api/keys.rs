//! Keys, hosts, origins, and cached prefixes of each key.

use bayan_server::ServerOptions;
use serde_json::json;

use crate::{Running, question, server, server_with};

fn with_keys() -> Running {
    server_with(ServerOptions {
        model: "bayan".into(),
        keys: vec!["first-key".into(), "second-key".into()],
        origins: vec!["https://page.example".into()],
        hosts: vec!["127.0.0.1".into(), "localhost".into()],
        ..Default::default()
    })
}

#[test]
fn only_keys_are_answered() {
    let server = with_keys();
    let body = question("السلام عليكم").to_string();
    for wrong in ["", "Bearer ", "Bearer first", "Bearer first-key2", "Basic first-key"] {
        let got = server.ask("/v1/chat/completions", Some(body.as_bytes()), &[("authorization", wrong)]);
        assert_eq!(
            (&got.error(401)["code"], got.header("www-authenticate")),
            (&json!("invalid_api_key"), Some("Bearer"))
        );
    }
    assert_eq!(server.ask("/v1/models", None, &[]).status, 401);
    assert_eq!(server.ask("/metrics", None, &[]).status, 401);
    assert_eq!(server.ask("/health", None, &[]).status, 200);
    assert_eq!(server.ask("/ready", None, &[]).status, 200);
    assert_eq!(server.get("/v1/models").good()["data"][0]["id"], "bayan");
    server.chat(question("السلام عليكم")).good();
}

#[test]
fn a_prefix_is_cached_for_its_key_only() {
    let server = with_keys();
    let ask = |key: &str| {
        let body = question("ما هي عاصمة فرنسا؟").to_string();
        let key = format!("Bearer {key}");
        let got = server.ask("/v1/chat/completions", Some(body.as_bytes()), &[("authorization", &key)]);
        let answer = got.good();
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (cached, crate::content(&answer))
    };
    let (cached, first) = ask("first-key");
    assert_eq!(cached, 0);
    let (cached, again) = ask("first-key");
    assert!(cached > 0 && again == first);
    let (cached, other) = ask("second-key");
    assert_eq!((cached, other), (0, first), "another key must not find the prefix");
    assert!(ask("first-key").0 > 0, "the first key's prefix is still there");
}

#[test]
fn hosts_and_origins_are_checked() {
    let server = with_keys();
    let key = ("authorization", "Bearer first-key");
    let got = server.ask("/v1/models", None, &[key, ("host", "evil.example")]);
    assert_eq!(got.error(403)["code"], "host_not_allowed");
    assert_eq!(server.ask("/v1/models", None, &[key, ("host", "localhost:99")]).status, 200);
    let got = server.ask("/v1/models", None, &[key, ("origin", "https://page.example")]);
    assert_eq!(got.header("access-control-allow-origin"), Some("https://page.example"));
    let got = server.ask("/v1/models", None, &[key, ("origin", "https://evil.example")]);
    assert_eq!(got.header("access-control-allow-origin"), None);
    let plain = crate::server();
    let got = plain.ask("/v1/models", None, &[("origin", "https://page.example")]);
    assert_eq!(got.header("access-control-allow-origin"), None);
}

#[test]
fn an_empty_key_passes_where_none_is_needed() {
    let server = server();
    assert_eq!(server.ask("/v1/models", None, &[("authorization", "Bearer ")]).status, 200);
    assert_eq!(server.ask("/v1/models/bayan", None, &[]).good()["id"], "bayan");
    server.ask("/v1/models/org/other", None, &[]).error(404);
}
