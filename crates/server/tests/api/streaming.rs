//! The bytes of a stream: whole characters, the same text as without streaming, the order of chunks.

use std::io::Read;

use serde_json::{Value, json};

use crate::{content, events, question, server, with};

#[test]
fn a_stream_is_the_whole_answer_in_whole_characters() {
    let server = server();
    for text in ["السلام عليكم", "كيف أصنع الشاي؟", "كم يساوي ٣ + ٤؟"] {
        let whole = server.chat(question(text)).good();
        let more = json!({"stream": true, "stream_options": {"include_usage": true}});
        let got = server.chat(with(question(text), more));
        assert_eq!(got.header("content-type"), Some("text/event-stream"));
        let chunks = events(&got.body);
        let (last, chunks) = chunks.split_last().unwrap();
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        let pieces: Vec<&str> = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(pieces.concat(), content(&whole), "{text}");
        assert!(pieces.len() > 2, "{pieces:?}");
        assert!(!got.text().contains('\u{fffd}'));
        let finish = &chunks.last().unwrap()["choices"][0]["finish_reason"];
        assert_eq!(finish, &whole["choices"][0]["finish_reason"]);
        let before = &chunks[..chunks.len() - 1];
        assert!(before.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
        assert_eq!(
            (&last["choices"], &last["usage"]["completion_tokens"]),
            (&json!([]), &whole["usage"]["completion_tokens"])
        );
        assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == last["id"]));
    }
}

#[test]
fn characters_split_over_tokens_are_never_cut() {
    let server = server();
    // At a high temperature the model writes odd bytes; those that are no characters become U+FFFD only where they
    // stay incomplete, the same with and without streaming.
    for seed in 0..6 {
        let odd = json!({"temperature": 3.0, "top_p": 1, "min_p": 0, "top_k": 0, "seed": seed, "max_tokens": 30});
        let whole = content(&server.chat(with(question("س"), odd.clone())).good());
        let stream = server.chat(with(with(question("س"), odd), json!({"stream": true})));
        let pieces = events(&stream.body);
        let text: String = pieces.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, whole, "seed {seed}");
    }
}

#[test]
fn choices_of_one_stream_are_those_of_one_answer() {
    let server = server();
    let more = json!({"n": 3, "temperature": 1.2, "seed": 5, "logprobs": true});
    let whole = server.chat(with(question("ما اسمك؟"), more.clone())).good();
    let chunks = events(&server.chat(with(with(question("ما اسمك؟"), more), json!({"stream": true}))).body);
    for index in 0..3 {
        let of: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|c| c["index"] == index).collect();
        let text: String = of.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        let choice = &whole["choices"][index];
        assert_eq!(text, choice["message"]["content"].as_str().unwrap());
        let scores = of.iter().filter_map(|choice| choice["logprobs"]["content"].as_array()).flatten().count();
        assert_eq!(scores, choice["logprobs"]["content"].as_array().unwrap().len());
        assert_eq!(of.last().unwrap()["finish_reason"], choice["finish_reason"]);
    }
}

#[test]
fn text_arrives_while_the_answer_is_computed() {
    let server = server();
    let body = with(question("كيف أصنع الشاي؟"), json!({"stream": true, "ignore_eos": true, "max_tokens": 150}));
    let answer = server.agent.post(server.url("/v1/chat/completions")).send(body.to_string()).unwrap();
    let mut reader = answer.into_body().into_reader();
    let (mut first, mut got) = ([0u8; 4096], Vec::new());
    while events_in(&got) < 3 {
        let count = reader.read(&mut first).unwrap();
        assert!(count > 0, "the stream ended early");
        got.extend_from_slice(&first[..count]);
    }
    assert!(server.metric("bayan_requests_running") > 0.0, "the answer was whole before its first piece came");
    reader.read_to_end(&mut got).unwrap();
    assert!(events(&got).len() > 50);
}

fn events_in(bytes: &[u8]) -> usize {
    bytes.windows(2).filter(|pair| pair == b"\n\n").count()
}
