//! Anthropic's `/v1/messages`.

use serde_json::{Value, json};

use crate::{fixture, server, server_with, typed_events, with};

fn ask() -> Value {
    let messages = json!([{"role": "user", "content": "السلام عليكم"}]);
    json!({"model": "bayan", "max_tokens": 40, "temperature": 0, "messages": messages})
}

#[test]
fn a_question_is_answered_whole_and_streamed() {
    let server = server();
    let answer = server.post("/v1/messages", &ask()).good();
    let text = answer["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("وعليكم السلام"), "{answer}");
    assert_eq!((&answer["type"], &answer["stop_reason"]), (&json!("message"), &json!("end_turn")));
    let count = server.post("/v1/messages/count_tokens", &ask()).good()["input_tokens"].as_u64().unwrap();
    let usage = &answer["usage"];
    assert_eq!(usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap(), count);
    let got = server.post("/v1/messages", &with(ask(), json!({"stream": true})));
    let events = typed_events(&got.body);
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], kinds[1]), ("message_start", "content_block_start"));
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let pieces = events.iter().filter_map(|event| event["delta"]["text"].as_str());
    assert_eq!(pieces.collect::<String>(), text);
    // A stop text, a system text, the limit.
    let stopped = server.post("/v1/messages", &with(ask(), json!({"stop_sequences": ["السلام"]}))).good();
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!("السلام")));
    let system = json!({"system": [{"type": "text", "text": "أجب بإيجاز"}], "max_tokens": 1});
    assert_eq!(server.post("/v1/messages", &with(ask(), system)).good()["stop_reason"], "max_tokens");
}

#[test]
fn tools_are_called_and_answered() {
    let server = fixture("qwen3_qknorm", None);
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": false});
    let tools = json!([{"name": "pick", "description": "x", "input_schema": schema}]);
    let choice = json!({"type": "tool", "name": "pick"});
    let ask =
        with(ask(), json!({"tools": tools, "tool_choice": choice, "max_tokens": 500, "temperature": 1, "seed": 5}));
    let answer = server.post("/v1/messages", &ask).good();
    let block = answer["content"][0].clone();
    assert_eq!(
        (&block["type"], &block["name"], &answer["stop_reason"]),
        (&json!("tool_use"), &json!("pick"), &json!("tool_use"))
    );
    assert!(block["input"]["n"].as_i64().is_some_and(|n| (0..=9).contains(&n)), "{block}");
    let events = typed_events(&server.post("/v1/messages", &with(ask.clone(), json!({"stream": true}))).body);
    let json: String = events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert!(serde_json::from_str::<Value>(&json).unwrap()["n"].is_i64(), "{json}");
    let result = json!({"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "٧"}]});
    let turns =
        json!([ask["messages"][0], {"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}]);
    let next = with(ask.clone(), json!({"messages": turns, "tool_choice": {"type": "auto"}, "max_tokens": 3}));
    server.post("/v1/messages", &next).good();
    let strange = json!([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]);
    let got = server.post("/v1/messages", &with(ask, json!({"messages": strange})));
    assert_eq!((got.status, &got.json()["error"]["type"]), (400, &json!("invalid_request_error")));
}

#[test]
fn errors_have_anthropic_s_shape() {
    let server = server_with(bayan_server::ServerOptions {
        model: "bayan".into(),
        keys: vec!["secret".into()],
        ..Default::default()
    });
    let body = ask().to_string();
    let refused = server.ask("/v1/messages", Some(body.as_bytes()), &[("x-api-key", "wrong")]);
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (401, &json!("authentication_error")));
    assert_eq!(server.ask("/v1/messages", Some(body.as_bytes()), &[("x-api-key", "secret")]).status, 200);
    for (more, status) in [
        (json!({"messages": []}), 400),
        (json!({"model": "other"}), 404),
        (json!({"max_tokens": 0}), 400),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), 400),
        (json!({"messages": [{"role": "system", "content": "x"}]}), 400),
        (json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), 400),
        (json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}), 400),
        (json!({"tool_choice": {"type": "any"}}), 400),
        (json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}), 400),
    ] {
        let got = server.post("/v1/messages", &with(ask(), more.clone()));
        let error = got.json();
        assert_eq!((got.status, &error["type"]), (status, &json!("error")), "{more}: {error}");
        assert!(error["error"]["message"].is_string() && error["error"]["type"].is_string(), "{error}");
    }
}
