//! OpenAI's `/v1/responses`, and what describes the server.

use serde_json::{Value, json};

use crate::{fixture, server, typed_events, with};

#[test]
fn a_response_is_the_same_whole_and_streamed() {
    let server = server();
    let ask = json!({"model": "bayan", "input": "السلام عليكم", "temperature": 0, "max_output_tokens": 40});
    let whole = server.post("/v1/responses", &ask).good();
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("وعليكم السلام"), "{whole}");
    assert_eq!(
        (&whole["object"], &whole["status"], &whole["store"]),
        (&json!("response"), &json!("completed"), &json!(false))
    );
    let events = typed_events(&server.post("/v1/responses", &with(ask.clone(), json!({"stream": true}))).body);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
    }
    let pieces = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    assert_eq!(pieces.map(|event| event["delta"].as_str().unwrap()).collect::<String>(), text);
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["output"][0]["content"]),
        (&json!("response.completed"), &whole["output"][0]["content"])
    );
    // The same conversation as items, with instructions, and cut.
    let items = json!([{"role": "user", "content": [{"type": "input_text", "text": "السلام عليكم"}]}]);
    let cut = json!({"input": items, "instructions": "أجب بإيجاز", "max_output_tokens": 1});
    let cut = server.post("/v1/responses", &with(ask.clone(), cut)).good();
    assert_eq!(
        (&cut["status"], &cut["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    for (more, param) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"background": true}), "background"),
        (json!({"input": []}), "input"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0]"),
        (json!({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}), "input[0]"),
        (json!({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 1}}}}), "text.format"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]"),
    ] {
        let error = server.post("/v1/responses", &with(ask.clone(), more.clone())).error(400);
        assert_eq!(error["param"], param, "{more}: {error}");
    }
}

#[test]
fn functions_and_formats_constrain_a_response() {
    let server = fixture("llama3_gqa", None);
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": false});
    let ask = json!({"input": "س", "temperature": 1, "seed": 5, "max_output_tokens": 500});
    let format = json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": true}}});
    let answer = server.post("/v1/responses", &with(ask.clone(), format)).good();
    let text = answer["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).unwrap()["n"].is_i64(), "{text}");
    let tools = json!([{"type": "function", "name": "pick", "parameters": schema}]);
    let called = with(ask, json!({"tools": tools, "tool_choice": "required"}));
    let call = server.post("/v1/responses", &called).good()["output"][0].clone();
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("pick")));
    assert!(serde_json::from_str::<Value>(call["arguments"].as_str().unwrap()).unwrap()["n"].is_i64(), "{call}");
    let events = typed_events(&server.post("/v1/responses", &with(called.clone(), json!({"stream": true}))).body);
    let pieces = events.iter().filter(|event| event["type"] == "response.function_call_arguments.delta");
    let json: String = pieces.map(|event| event["delta"].as_str().unwrap()).collect();
    assert!(serde_json::from_str::<Value>(&json).unwrap()["n"].is_i64(), "{json}");
    let output = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "٧"});
    let items = json!([{"role": "user", "content": "س"}, call, output]);
    let next = with(called, json!({"input": items, "tool_choice": "auto", "max_output_tokens": 3}));
    server.post("/v1/responses", &next).good();
}

#[test]
fn every_route_is_described_and_answers() {
    let server = server();
    let description = server.get("/openapi.json").good();
    assert_eq!(description["openapi"], "3.1.0");
    let paths = description["paths"].as_object().unwrap();
    assert!(paths.len() >= 17, "{} paths", paths.len());
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{id}", "bayan");
            let got = if method == "get" { server.get(&path) } else { server.post(&path, &json!({"unknown": 1})) };
            // A request without its fields is wrong, but the route and the method are there.
            let refused = path.ends_with("lora_adapter");
            let fine = [200, 400].contains(&got.status) || refused && got.status == 403;
            assert!(fine, "{method} {path}: {} {}", got.status, got.text());
        }
    }
    assert_eq!(server.get("/props").good()["total_slots"], 2);
    assert!(server.get("/version").good()["version"].is_string());
}
