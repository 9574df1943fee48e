//! Metrics count what happened, and hold no text.

use serde_json::json;

use crate::{SLOTS, question, server, with};

#[test]
fn metrics_count_and_say_nothing_of_texts() {
    let server = server();
    assert_eq!(server.get("/health").good()["status"], "ok");
    let secret = "كلمة سرية جدا";
    // An answer longer than its prompt would be kept, and so short a prompt computed again beside it.
    let short = with(question(secret), json!({"max_tokens": 8}));
    let answer = server.chat(short.clone()).good();
    server.chat(with(short, json!({"odd_field": 1}))).good();
    server.chat(json!({})).error(400);
    let got = server.get("/metrics");
    assert!(got.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = got.text();
    assert!(!text.contains("سرية") && !text.contains("odd_field"));
    let usage = &answer["usage"];
    let number = |name: &str| usage[name].as_u64().unwrap() as f64;
    assert_eq!(server.metric("bayan_prompt_tokens_total"), 2.0 * number("prompt_tokens"));
    assert_eq!(server.metric("bayan_generated_tokens_total"), 2.0 * number("completion_tokens"));
    assert_eq!(server.metric("bayan_cached_prompt_tokens_total"), number("prompt_tokens") - 1.0);
    assert_eq!(server.metric("bayan_time_to_first_token_seconds_count"), 2.0);
    assert_eq!(server.metric("bayan_time_between_tokens_seconds_count"), 2.0 * (number("completion_tokens") - 1.0));
    assert_eq!(server.metric("bayan_ignored_fields_total"), 1.0);
    assert_eq!((server.metric("bayan_requests_running"), server.metric("bayan_requests_queued")), (0.0, 0.0));
    assert_eq!(server.metric("bayan_cache_slots"), SLOTS as f64);
    assert!(server.metric("bayan_cache_tokens") > 0.0);
    assert!(text.contains("bayan_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 2"), "{text}");
    assert!(text.contains("bayan_requests_total{route=\"/v1/chat/completions\",status=\"400\"} 1"), "{text}");
    assert!(text.ends_with("# EOF\n"));
}
