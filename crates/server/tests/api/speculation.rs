//! Speculative decoding changes no byte of an answer, and is counted.

use bayan_server::ServerOptions;
use serde_json::{Value, json};

use crate::{Served, content, events, question, serve, server, with};

/// Accepted and rejected proposals of a request.
fn proposals(answer: &Value) -> [u64; 2] {
    let details = &answer["usage"]["completion_tokens_details"];
    ["accepted_prediction_tokens", "rejected_prediction_tokens"]
        .map(|name| details[name].as_u64().unwrap_or_else(|| panic!("{answer}")))
}

#[test]
fn lookups_change_no_byte_and_are_counted() {
    let plain = server();
    let speculating = serve(Served::Speculating, ServerOptions { model: "bayan".into(), ..Default::default() });
    let mut sums = [0, 0];
    // After its end, the answer to the first repeats itself.
    let asked = ["اذكر عواصم الدول العربية: مصر القاهرة، سوريا دمشق، العراق بغداد، لبنان بيروت.", "كيف أصنع الشاي؟"];
    for text in asked {
        let whole = content(&plain.chat(question(text)).good());
        let stop: String = whole.chars().skip(5).take(2).collect();
        let stop = if stop.is_empty() { "لا شيء".to_string() } else { stop };
        let more = [
            json!({"ignore_eos": true, "max_tokens": 100}),
            json!({"temperature": 1.2, "seed": 3, "n": 2, "ignore_eos": true}),
            json!({"stop": stop}),
            json!({"logprobs": true, "top_logprobs": 2}),
            json!({"repeat_penalty": 1.4}),
            json!({"response_format": {"type": "json_object"}, "max_tokens": 20}),
        ];
        for more in more {
            let body = with(question(text), more);
            let (expected, found) = (plain.chat(body.clone()).good(), speculating.chat(body.clone()).good());
            assert_eq!(found["choices"], expected["choices"], "{body}");
            assert_eq!(proposals(&expected), [0, 0]);
            assert_eq!(found["usage"]["completion_tokens"], expected["usage"]["completion_tokens"]);
            let own = proposals(&found);
            sums = [sums[0] + own[0], sums[1] + own[1]];
            let body = with(body, json!({"stream": true}));
            let [expected, streamed] = [&plain, &speculating].map(|server| {
                let chunks = events(&server.chat(body.clone()).body);
                let piece = |chunk: &Value| {
                    let choice = &chunk["choices"][0];
                    (choice["index"].as_u64(), choice["delta"].to_string())
                };
                // Pieces of two choices come in any order.
                let mut pieces: Vec<_> = chunks.iter().map(piece).collect();
                pieces.sort_by_key(|(choice, _)| *choice);
                pieces
            });
            assert_eq!(streamed, expected, "{body}");
        }
    }
    assert!(sums[0] > 0 && sums[1] > 0, "{sums:?}");
    // Every request was asked twice, once as a stream.
    assert_eq!(speculating.metric("bayan_accepted_tokens_total"), 2.0 * sums[0] as f64);
    assert_eq!(speculating.metric("bayan_proposed_tokens_total"), 2.0 * (sums[0] + sums[1]) as f64);
    assert_eq!(plain.metric("bayan_proposed_tokens_total"), 0.0);
}
