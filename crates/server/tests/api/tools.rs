//! Tool calls in the forms of several templates, whole and streamed, on models with random weights.

use serde_json::{Value, json};

use crate::{Running, events, fixture, question, with};

/// After Mistral's: calls as one list, and ids of nine characters.
const MISTRAL: &str = "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}[TOOL_RESULTS]{\"content\": {{ m.content | tojson }}, \"call_id\": \"{{ m.tool_call_id }}\"}[/TOOL_RESULTS]{% elif m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}, \"id\": \"{{ c.id }}\"}{% endfor %}]{% if m.tool_calls[0].id|length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}{% else %}{{ m.content }}{% endif %}{% endfor %}";

fn tools() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"enum": ["دمشق", "صنعاء"]}}, "required": ["city"], "additionalProperties": false});
    let add = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"type": "boolean"}}, "required": ["a", "b"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "الطقس", "parameters": city, "strict": true}},
        {"type": "function", "function": {"name": "add", "parameters": add}},
    ])
}

fn check_call(name: &str, arguments: &str) {
    let value: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments}"));
    match name {
        "get_weather" => assert!(["دمشق", "صنعاء"].contains(&value["city"].as_str().unwrap()), "{value}"),
        "add" => assert!((0..=9).contains(&value["a"].as_i64().unwrap()) && value["b"].is_boolean(), "{value}"),
        other => panic!("{other}"),
    }
}

/// The calls of a whole answer: (id, name, arguments).
fn calls(message: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{message}")).to_string();
    let list = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let call = |call: &Value| {
        assert_eq!(call["type"], "function");
        (text(&call["id"]), text(&call["function"]["name"]), text(&call["function"]["arguments"]))
    };
    list.iter().map(call).collect()
}

/// The same, and the text, from the pieces of a stream; a call has its id and name once.
fn streamed(server: &Running, body: Value) -> (String, Vec<(String, String, String)>, Value) {
    let got = server.chat(with(body, json!({"stream": true})));
    assert_eq!(got.status, 200, "{}", got.text());
    let (mut text, mut calls, mut finish) = (String::new(), Vec::<(String, String, String)>::new(), Value::Null);
    for event in events(&got.body) {
        let choice = &event["choices"][0];
        text.push_str(choice["delta"]["content"].as_str().unwrap_or(""));
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{call}")).to_string();
                calls.push((text(&call["id"]), text(&call["function"]["name"]), String::new()));
            } else {
                assert!(call.get("id").is_none() && call["function"].get("name").is_none(), "{call}");
            }
            calls[index].2.push_str(call["function"]["arguments"].as_str().unwrap());
        }
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    (text, calls, finish)
}

/// The models, their templates, and whether an answer may have several calls.
const MODELS: [(&str, Option<&str>, bool); 4] = [
    ("qwen3_qknorm", None, true),
    ("llama3_gqa", None, false),
    ("mistral_swa", Some(MISTRAL), true),
    ("gemma3_text", None, true),
];

#[test]
fn required_and_named_calls_are_valid_in_every_form() {
    for (name, template, several) in MODELS {
        let server = fixture(name, template);
        let common = json!({"tools": tools(), "temperature": 1, "seed": 7, "max_tokens": 200});
        let ask = with(question("ما الطقس؟"), with(common, json!({"tool_choice": "required"})));
        let choice = server.chat(ask.clone()).good()["choices"][0].clone();
        let found = calls(&choice["message"]);
        assert!(!found.is_empty() && (several || found.len() == 1), "{name}: {choice}");
        // An answer with many calls may be cut in its last one.
        let cut = choice["finish_reason"] == "length";
        assert!(cut && found.len() > 1 || choice["finish_reason"] == "tool_calls", "{name}: {choice}");
        assert_eq!(choice["message"]["content"], Value::Null, "{name}: {choice}");
        found[..found.len() - usize::from(cut)].iter().for_each(|(_, name, arguments)| check_call(name, arguments));
        let mut ids: Vec<&str> = found.iter().map(|call| call.0.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), found.len(), "{name}: every call has an id of its own");
        // The stream has the same calls under new ids.
        let (text, pieces, finish) = streamed(&server, ask.clone());
        let without_ids = |calls: &[(String, String, String)]| -> Vec<(String, String)> {
            calls.iter().map(|call| (call.1.clone(), call.2.clone())).collect()
        };
        assert_eq!((text.as_str(), without_ids(&pieces)), ("", without_ids(&found)), "{name}");
        assert_eq!(finish, choice["finish_reason"]);
        // One call of a function that is named, and one without parallel calls.
        let named = json!({"tool_choice": {"type": "function", "function": {"name": "add"}}});
        let choice = server.chat(with(ask.clone(), named)).good()["choices"][0].clone();
        let found = calls(&choice["message"]);
        assert_eq!((found.len(), found[0].1.as_str(), &choice["finish_reason"]), (1, "add", &json!("stop")), "{name}");
        check_call("add", &found[0].2);
        let one = server.chat(with(ask, json!({"parallel_tool_calls": false}))).good()["choices"][0].clone();
        assert_eq!(calls(&one["message"]).len(), 1, "{name}: {one}");
    }
}

#[test]
fn free_answers_hold_text_or_valid_calls() {
    for (name, template, _) in MODELS {
        let server = fixture(name, template);
        let ask = with(question("ما الطقس؟"), json!({"tools": tools(), "temperature": 1.5, "max_tokens": 30}));
        for seed in [3, 4] {
            let ask = with(ask.clone(), json!({"seed": seed}));
            let choice = server.chat(ask.clone()).good()["choices"][0].clone();
            let (text, pieces, finish) = streamed(&server, ask);
            assert_eq!(choice["message"]["content"].as_str().unwrap_or(""), text, "{name}");
            assert_eq!((calls(&choice["message"]).len(), &choice["finish_reason"]), (pieces.len(), &finish), "{name}");
        }
        // `none` offers nothing, and log-probabilities stay with their tokens.
        let none = with(ask, json!({"tool_choice": "none", "logprobs": true, "stream": true, "seed": 1}));
        let scored = events(&server.chat(none).body);
        let scores = scored.iter().filter(|event| !event["choices"][0]["logprobs"].is_null()).count();
        assert!(scores > 0, "{name}");
    }
}

#[test]
fn a_conversation_goes_on_after_a_call() {
    for (name, template, _) in MODELS {
        let server = fixture(name, template);
        let ask = with(question("ما الطقس؟"), json!({"tools": tools(), "tool_choice": "required", "max_tokens": 200}));
        let ask = with(ask, json!({"parallel_tool_calls": false, "temperature": 1, "seed": 3}));
        let message = server.chat(ask.clone()).good()["choices"][0]["message"].clone();
        let id = calls(&message)[0].0.clone();
        let user = json!({"role": "user", "content": "ما الطقس؟"});
        let result = json!({"role": "tool", "tool_call_id": id, "content": "مشمس"});
        let next = with(ask.clone(), json!({"messages": [user, message, result], "tool_choice": "auto"}));
        server.chat(with(next.clone(), json!({"max_tokens": 5}))).good();
        let text = server.post("/apply-template", &json!({"messages": next["messages"], "tools": tools()})).good();
        let text = text["prompt"].as_str().unwrap();
        assert!(text.contains("مشمس") && text.contains("get_weather"), "{name}: {text}");
        // A result for a call that was never made, and a call without its result.
        let strange = json!({"role": "tool", "tool_call_id": "call_x", "content": "x"});
        for messages in [json!([user, message, strange]), json!([user, message]), json!([user, message, user])] {
            server.chat(with(ask.clone(), json!({"messages": messages}))).error(400);
        }
    }
}

#[test]
fn wrong_tools_name_their_place() {
    let server = fixture("qwen3_qknorm", None);
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    for (more, param) in [
        (json!({"tools": "f"}), "tools"),
        (json!({"tools": [1]}), "tools[0]"),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0]"),
        (function(json!({"name": "a b"})), "tools[0].function"),
        (function(json!({"name": "f", "parameters": 1})), "tools[0].function"),
        (function(json!({"name": "f", "parameters": {"type": "array"}})), "tools[0].function"),
        (
            function(
                json!({"name": "f", "strict": true, "parameters": {"type": "object", "properties": {"a": {"$ref": "#/x"}}}}),
            ),
            "tools[0].function.parameters",
        ),
        (json!({"tools": [tools()[1], tools()[1]]}), "tools"),
        (json!({"tools": tools(), "tool_choice": "always"}), "tool_choice"),
        (json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "g"}}}), "tool_choice"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": tools(), "response_format": {"type": "json_object"}}), "tools"),
    ] {
        let error = server.chat(with(question("س"), more.clone())).error(400);
        assert_eq!(error["param"], param, "{more}: {error}");
    }
    // A schema that is not strict and cannot be used allows any object, and that is said.
    let odd = json!({"name": "f", "parameters": {"type": "object", "if": {"required": ["a"]}}});
    let got = server.chat(with(question("س"), with(function(odd), json!({"max_tokens": 2}))));
    assert_eq!((got.status, got.header("x-bayan-ignored-fields")), (200, Some("tools0.function.parameters")));
}
