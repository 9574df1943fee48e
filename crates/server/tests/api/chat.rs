//! `/v1/chat/completions`: shape, seeds, choices, log-probabilities, what is refused.

use serde_json::{Value, json};

use crate::{content, question, server, server_on_gpu, with};

#[test]
fn a_question_is_answered() {
    let server = server_on_gpu();
    let answer = server.chat(question("السلام عليكم")).good();
    assert!(content(&answer).starts_with("وعليكم السلام"), "{answer}");
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("bayan")));
    assert!(answer["id"].as_str().expect("an id").starts_with("chatcmpl-"));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    let usage = &answer["usage"];
    let [prompt, new, all] = ["prompt_tokens", "completion_tokens", "total_tokens"].map(|n| usage[n].as_u64().unwrap());
    assert!(prompt > 0 && new > 0 && all == prompt + new, "{usage}");
    // Again: the prompt is cached, the answer the same.
    let again = server.chat(question("السلام عليكم")).good();
    assert_eq!(content(&again), content(&answer));
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0), "{again}");
    // Parts of text, OpenAI's other role, and both names of the limit.
    let parts = json!([{"role": "developer", "content": "أجب بإيجاز"},
        {"role": "user", "content": [{"type": "text", "text": "السلام "}, {"type": "text", "text": "عليكم"}]}]);
    let cut = server.chat(with(question(""), json!({"messages": parts, "max_completion_tokens": 1}))).good();
    assert_eq!(
        (&cut["choices"][0]["finish_reason"], &cut["usage"]["completion_tokens"]),
        (&json!("length"), &json!(1))
    );
}

#[test]
fn seeds_repeat_and_choices_count_up_from_them() {
    let server = server_on_gpu();
    let ask = |seed: u64, n: usize| {
        let more =
            json!({"temperature": 5, "max_tokens": 12, "seed": seed, "n": n, "top_p": 1, "top_k": 0, "min_p": 0});
        let answer = server.chat(with(question("ما اسمك؟"), more)).good();
        let choices = answer["choices"].as_array().expect("choices").clone();
        choices.iter().map(|choice| choice["message"]["content"].clone()).collect::<Vec<Value>>()
    };
    let many = ask(11, 4);
    assert_eq!(many.len(), 4);
    assert!(many.iter().any(|text| text != &many[0]), "four samples at temperature 5 are the same: {many:?}");
    for (choice, text) in many.iter().enumerate() {
        assert_eq!(&ask(11 + choice as u64, 1)[0], text, "choice {choice}");
    }
}

#[test]
fn settings_have_their_effect() {
    let server = server();
    let plain = server.chat(with(question("ما اسمك؟"), json!({"logprobs": true, "top_logprobs": 3}))).good();
    let entries = plain["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone();
    assert_eq!(entries.len() as u64, plain["usage"]["completion_tokens"].as_u64().unwrap());
    let mut bytes = Vec::new();
    for entry in &entries {
        let top = entry["top_logprobs"].as_array().expect("a list");
        assert_eq!(top.len(), 3);
        // Greedy: the token is the likeliest one, and both numbers are the same.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&entry["token"], &entry["logprob"]));
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
        bytes.extend(entry["bytes"].as_array().expect("bytes").iter().map(|byte| byte.as_u64().unwrap() as u8));
    }
    assert_eq!(String::from_utf8(bytes).unwrap().trim(), content(&plain).trim());
    // A bias of -100 forbids the first token.
    let first = entries[0]["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8).collect();
    let first = String::from_utf8(first).unwrap();
    let tokens = server.post("/tokenize", &json!({"content": first})).good()["tokens"].clone();
    let id = tokens[tokens.as_array().unwrap().len() - 1].as_u64().unwrap().to_string();
    let biased = server.chat(with(question("ما اسمك؟"), json!({"logit_bias": {id: -100}}))).good();
    assert_ne!(content(&biased), content(&plain));
    // A penalty for tokens of the prompt changes the answer too.
    let penalized =
        server.chat(with(question("ما اسمك؟"), json!({"presence_penalty": 2, "frequency_penalty": 2}))).good();
    assert!(!content(&penalized).is_empty());
}

#[test]
fn wrong_requests_name_what_is_wrong() {
    let server = server();
    let wrong = |more: Value, param: &str, part: &str| {
        let error = server.chat(with(question("س"), more.clone())).error(400);
        assert_eq!(error["param"], param, "{more}: {error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{more}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    };
    wrong(json!({"temperature": "hot"}), "temperature", "expected a number");
    wrong(json!({"top_p": 1.5}), "top_p", "from 0 to 1");
    wrong(json!({"n": 9}), "n", "from 1 to 8");
    wrong(json!({"max_tokens": 0}), "max_tokens", "at least 1");
    wrong(json!({"stop": [""]}), "stop", "1 to 1024 bytes");
    wrong(json!({"logit_bias": {"9999999": 1}}), "logit_bias", "below");
    wrong(json!({"top_logprobs": 2}), "top_logprobs", "needs `logprobs`");
    wrong(json!({"stream_options": {"include_usage": true}}), "stream_options", "`stream`");
    wrong(json!({"tools": [{"type": "function"}]}), "tools[0]", "`function`");
    wrong(json!({"response_format": {"type": "yaml"}}), "response_format", "json_schema");
    wrong(json!({"messages": []}), "messages", "empty");
    wrong(json!({"messages": "hello"}), "messages", "list");
    wrong(json!({"messages": [{"role": "robot", "content": "س"}]}), "messages[0]", "role");
    wrong(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0]", "text");
    wrong(json!({"messages": [{"role": "user", "content": "س", "tool_calls": [1]}]}), "messages[0]", "tool_calls");
    let error = server.chat(with(question("س"), json!({"model": "other"}))).error(404);
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    for body in ["", "{", "[]", "\"x\"", "{\"messages\": \u{0}}", &"[".repeat(5000)] {
        let got = server.ask("/v1/chat/completions", Some(body.as_bytes()), &[]);
        got.error(400);
    }
    server.ask("/v1/chat/completions", Some(b"\xff\xfe{}"), &[]).error(400);
    server.get("/v1/chat/completions").error(405);
    server.get("/v1/nothing").error(404);
    // And the next request is answered.
    server.chat(question("السلام عليكم")).good();
}

#[test]
fn fields_without_effect_are_reported() {
    let server = server();
    let plain = server.chat(question("ما اسمك؟"));
    assert_eq!(plain.header("x-bayan-ignored-fields"), None);
    assert!(plain.header("x-request-id").is_some_and(|id| id.starts_with("req-")));
    let more = json!({"user": "u1", "temprature": 1, "odd\nname": 1, "tools": [], "response_format": {"type": "text"}});
    let got = server.chat(with(question("ما اسمك؟"), more));
    assert_eq!(got.header("x-bayan-ignored-fields"), Some("user, temprature, oddname"));
    assert_eq!(content(&got.good()), content(&plain.good()));
}
