//! Constraints of the text: JSON schemas, expressions, grammars. What ends with `stop` is valid.

use serde_json::{Value, json};

use crate::{content, events, fixture, question, server, with};

fn card() -> Value {
    json!({
        "type": "object",
        "properties": {
            "المدينة": {"enum": ["القاهرة", "دمشق"]},
            "عدد": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        "required": ["المدينة", "عدد"],
        "additionalProperties": false,
    })
}

fn check_card(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(["القاهرة", "دمشق"].contains(&value["المدينة"].as_str().unwrap()), "{text}");
    assert!((1..=99).contains(&value["عدد"].as_i64().unwrap()) && value.as_object().unwrap().len() == 2, "{text}");
}

#[test]
fn every_form_of_a_schema_gives_its_documents() {
    let server = fixture("qwen3_qknorm", None);
    let format = json!({"type": "json_schema", "json_schema": {"name": "card", "schema": card(), "strict": true}});
    let forms = [
        json!({"response_format": format}),
        json!({"guided_json": card()}),
        json!({"json_schema": card()}),
        json!({"structured_outputs": {"json": card()}}),
    ];
    for (form, seed) in forms.into_iter().zip(1..) {
        // A random model at a temperature: the grammar alone decides the form.
        let more = with(form, json!({"temperature": 1, "seed": seed, "max_tokens": 600, "n": 2}));
        let answer = server.chat(with(question("س"), more.clone())).good();
        for choice in answer["choices"].as_array().unwrap() {
            assert_eq!(choice["finish_reason"], "stop", "{answer}");
            check_card(choice["message"]["content"].as_str().unwrap());
        }
        // The stream is the same text.
        let more = with(more, json!({"stream": true, "n": 1}));
        let stream = events(&server.chat(with(question("س"), more)).body);
        let pieces = stream.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(pieces.collect::<String>(), content(&answer));
    }
    let more = json!({"prompt": "x", "regex": "[0-9]{3}-[0-9]{2}", "max_tokens": 50, "logprobs": 2});
    let answer = server.complete(more).good();
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(text.len() == 6 && text.as_bytes()[3] == b'-', "{text}");
    assert!(answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().len() > 1);
}

#[test]
fn a_chat_answers_within_its_grammar() {
    let server = server();
    let choice = json!({"guided_choice": ["القاهرة", "دمشق", "بغداد"], "temperature": 0});
    assert_eq!(content(&server.chat(with(question("ما عاصمة مصر؟"), choice)).good()), "القاهرة");
    let object = json!({"response_format": {"type": "json_object"}, "max_tokens": 60});
    let answer = server.chat(with(question("ما عاصمة مصر؟"), object)).good();
    if answer["choices"][0]["finish_reason"] == "stop" {
        assert!(serde_json::from_str::<Value>(&content(&answer)).unwrap().is_object());
    }
    // Without a constraint, the next answer is free again.
    assert!(content(&server.chat(question("السلام عليكم")).good()).starts_with("وعليكم السلام"));
}

#[test]
fn wrong_constraints_are_refused_and_others_go_on() {
    let server = server();
    for (more, param) in [
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}}),
            "response_format",
        ),
        (json!({"guided_json": {"$ref": "#/nowhere"}}), "guided_json"),
        (json!({"regex": "("}), "regex"),
        (json!({"grammar": "start: nothing"}), "grammar"),
        (json!({"regex": "a", "grammar": "start: \"a\""}), "grammar"),
    ] {
        let error = server.chat(with(question("س"), more.clone())).error(400);
        assert_eq!(error["param"], param, "{more}: {error}");
        let prompt = json!({"prompt": "س", "max_tokens": 3});
        assert_eq!(server.complete(with(prompt, more)).error(400)["param"], param);
    }
    server.chat(question("السلام عليكم")).good();
}

#[test]
fn a_fault_of_a_grammar_ends_only_its_answer() {
    let server = server();
    // Ambiguous beyond the limits: every split of the text is another derivation.
    let ambiguous = "start: a\na: a a a | a a | \"س\" | \"سس\" | \"سسس\" | \"سسسس\" | \"\"";
    std::thread::scope(|scope| {
        let other = scope.spawn(|| content(&server.chat(question("السلام عليكم")).good()));
        let got = server.chat(with(question("س"), json!({"grammar": ambiguous, "max_tokens": 100})));
        // It may also be refused at once, or be cut: never a hang, never an end of the server.
        assert!([200, 400, 500].contains(&got.status), "{}", got.text());
        assert!(other.join().unwrap().starts_with("وعليكم السلام"));
    });
    assert!(content(&server.chat(question("السلام عليكم")).good()).starts_with("وعليكم السلام"));
}
