//! `/v1/completions`: texts and ids, scores of prompts as evaluation programs read them.

use serde_json::{Value, json};

use crate::{Running, events, server, server_on_gpu};

fn ids(server: &Running, text: &str) -> Vec<u64> {
    let tokens = server.post("/tokenize", &json!({"prompt": text, "add_special_tokens": false})).good();
    tokens["tokens"].as_array().expect("a list").iter().map(|id| id.as_u64().unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<Option<f64>> {
    value.as_array().expect("a list").iter().map(Value::as_f64).collect()
}

#[test]
fn texts_and_ids_are_continued() {
    let server = server();
    let plain = json!({"prompt": "عاصمة فرنسا", "temperature": 0, "max_tokens": 6});
    let answer = server.complete(plain).good();
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["usage"]["completion_tokens"].as_u64().map(|n| n <= 6), Some(true));
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(!text.is_empty());
    // Several prompts, each with several answers, in order.
    let many = json!({"prompt": ["عاصمة فرنسا", "ما"], "temperature": 0, "max_tokens": 6, "n": 2, "echo": true});
    let choices = server.complete(many).good()["choices"].clone();
    let list = choices.as_array().unwrap();
    assert_eq!(list.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(list[0]["text"], format!("عاصمة فرنسا{text}"));
    assert_eq!(list[0]["text"], list[1]["text"]);
    assert!(list[3]["text"].as_str().unwrap().starts_with("ما"));
}

#[test]
fn prompts_are_scored_as_evaluation_programs_ask() {
    let server = server_on_gpu();
    // Prompts of different lengths, longer and shorter than a piece.
    let long = "كان يا ما كان في قديم الزمان رجل يعيش في قرية صغيرة وكان له بيت وحديقة ".repeat(3);
    let prompts = [ids(&server, "عاصمة فرنسا هي باريس"), ids(&server, &long), ids(&server, "س")];
    assert!(prompts[1].len() > 40, "{}", prompts[1].len());
    let body = json!({"model": "bayan", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1,
        "seed": 1234, "echo": true});
    let answer = server.complete(body).good();
    for (prompt, choice) in prompts.iter().zip(answer["choices"].as_array().expect("choices")) {
        let scores = numbers(&choice["logprobs"]["token_logprobs"]);
        let top = choice["logprobs"]["top_logprobs"].as_array().expect("a list");
        // An answer may end at once, with a stop token that has no entry.
        let new = scores.len() - prompt.len();
        assert!(new <= 1, "{} scores of {} tokens", scores.len(), prompt.len());
        assert!(scores[0].is_none() && top[0].is_null() && scores[1..].iter().all(Option::is_some));
        for (score, top) in scores.iter().zip(top).skip(1) {
            let largest = top.as_object().unwrap().values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
            assert!(score.unwrap() <= largest);
        }
        if new == 1 {
            // Greedy: equal to the largest exactly.
            let last =
                top.last().unwrap().as_object().unwrap().values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
            assert_eq!(scores.last().unwrap().unwrap(), last);
        }
        let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
        assert_eq!(offsets.len(), scores.len());
        assert!(offsets.is_sorted_by_key(|offset| offset.as_u64()));
    }
    // Nothing new: the scores of the prompt alone, which are the same.
    let none = json!({"prompt": prompts[0], "max_tokens": 0, "logprobs": 1, "echo": true});
    let alone = server.complete(none).good();
    let (one, other) = (&alone["choices"][0]["logprobs"], &answer["choices"][0]["logprobs"]);
    let alone_scores = numbers(&one["token_logprobs"]);
    assert_eq!(alone_scores.len(), prompts[0].len());
    for (a, b) in alone_scores.iter().zip(numbers(&other["token_logprobs"])).skip(1) {
        assert!((a.unwrap() - b.unwrap()).abs() < 1e-3, "{a:?} {b:?}");
    }
    assert_eq!(alone["usage"]["completion_tokens"], 0);
}

#[test]
fn a_prompt_s_scores_are_those_of_its_generation() {
    let server = server();
    let prompt = ids(&server, "عاصمة فرنسا");
    let body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 5, "logprobs": 2,
        "return_tokens_as_token_ids": true, "ignore_eos": true});
    let generated = server.complete(body).good()["choices"][0]["logprobs"].clone();
    let names = generated["tokens"].as_array().unwrap().clone();
    let new =
        names.iter().map(|name| name.as_str().unwrap().strip_prefix("token_id:").unwrap().parse::<u64>().unwrap());
    let whole: Vec<u64> = prompt.iter().copied().chain(new).collect();
    let body = json!({"prompt": whole, "max_tokens": 0, "logprobs": 2, "echo": true});
    let scored = server.complete(body).good()["choices"][0]["logprobs"].clone();
    let (first, second) = (numbers(&generated["token_logprobs"]), numbers(&scored["token_logprobs"]));
    assert_eq!(first.len(), 5);
    for (a, b) in first.iter().zip(&second[prompt.len()..]) {
        // Other kernels read a prompt than one token.
        assert!((a.unwrap() - b.unwrap()).abs() < 2e-2, "{first:?} {second:?}");
    }
}

#[test]
fn streams_carry_the_same() {
    let server = server();
    let body = json!({"prompt": "عاصمة فرنسا", "temperature": 0, "max_tokens": 6, "logprobs": 1, "echo": true});
    let whole = server.complete(body.clone()).good();
    let stream = crate::with(body, json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut chunks = events(&server.complete(stream).body);
    let last = chunks.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &whole["usage"]["total_tokens"]));
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, whole["choices"][0]["text"].as_str().unwrap());
    for list in ["tokens", "text_offset", "token_logprobs"] {
        let parts = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"][list].as_array());
        let joined: Vec<Value> = parts.flatten().cloned().collect();
        let whole = whole["choices"][0]["logprobs"][list].as_array().unwrap();
        assert_eq!(joined.len(), whole.len(), "{list}");
        if list != "token_logprobs" {
            assert_eq!(&joined, whole, "{list}");
        }
    }
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
}

#[test]
fn wrong_prompts_are_refused() {
    let server = server();
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": [1, "x"]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt"),
        (json!({"prompt": [99_999_999]}), "prompt"),
        (json!({"prompt": "س", "max_tokens": 0}), "max_tokens"),
        (json!({"prompt": "س", "best_of": 3}), "best_of"),
        (json!({"prompt": "س", "suffix": "ب"}), "suffix"),
        (json!({"prompt": "س", "logprobs": 99}), "logprobs"),
    ] {
        assert_eq!(server.complete(body.clone()).error(400)["param"], param, "{body}");
    }
}
