//! Random and mutated JSON on every route: no answer is an error of the server, nothing panics, and the server goes on.
//!
//! The numbers are seeded, so that a failure repeats: it prints the request. `BAYAN_FUZZ_SECONDS` sets the time.

use std::time::{Duration, Instant};

use bayan_server::{Limits, ServerOptions};
use serde_json::{Map, Value, json};

use crate::{Got, Running, content, question, server_with};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }
}

const TEXTS: &[&str] = &[
    "",
    "س",
    "السلام عليكم",
    "user",
    "assistant",
    "system",
    "tool",
    "auto",
    "none",
    "required",
    "any",
    "function",
    "text",
    "json_object",
    "json_schema",
    "regex",
    "object",
    "string",
    "array",
    "integer",
    "number",
    "null",
    "bayan",
    "get_weather",
    "input_text",
    "tool_use",
    "tool_result",
    "call_1",
    "\u{0}",
    "\u{202e}",
    "\u{fffd}",
    "😀👩‍👩‍👧",
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "{{ messages }}",
    "{% for x in y %}",
    "[0-9]+",
    "(a|b)*",
    "((((",
    "[",
    "\\p{Arabic}{2,5}",
    "start: /[a-z]+/",
    "start: x\nx: \"a\" x | \"b\"",
    "a{1,100000}",
    "#/$defs/x",
    "$ref",
    "../../etc/passwd",
    "/dev/zero",
    "1e999",
    "2024-01-01",
    "true",
];

const NAMES: &[&str] = &[
    "model",
    "messages",
    "role",
    "content",
    "type",
    "text",
    "prompt",
    "input",
    "instructions",
    "max_tokens",
    "n",
    "max_completion_tokens",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "include_usage",
    "logprobs",
    "top_logprobs",
    "echo",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "repeat_penalty",
    "ignore_eos",
    "response_format",
    "json_schema",
    "schema",
    "strict",
    "name",
    "regex",
    "grammar",
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
    "structured_outputs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "function",
    "parameters",
    "description",
    "tool_calls",
    "tool_call_id",
    "arguments",
    "id",
    "system",
    "stop_sequences",
    "input_schema",
    "tool_use_id",
    "tokens",
    "add_special_tokens",
    "return_token_strs",
    "return_tokens_as_token_ids",
    "lora_name",
    "lora_path",
    "chat_template_kwargs",
    "previous_response_id",
    "call_id",
    "output",
    "format",
    "properties",
    "required",
    "items",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "$ref",
    "$defs",
    "pattern",
    "minLength",
    "maxItems",
    "minimum",
    "multipleOf",
    "additionalProperties",
    "user",
    "metadata",
    "reasoning_effort",
    "0",
    "5",
    "-1",
];

fn scalar(random: &mut Random) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 => json!([0, 1, 2, 3, 5, 8, 100, 4095][random.below(8)]),
        3 => json!([-1i64, i64::MIN, i64::MAX, -100, 1 << 31, 1 << 53][random.below(6)]),
        4 => json!(u64::MAX),
        5 => json!([0.0, -0.0, 0.5, 1.0, 1e-300, 1e300, -1e9, 0.999_999_9, 2.000_000_1][random.below(9)]),
        6 => json!(random.pick(TEXTS).repeat(1 + random.below(40))),
        7 => json!(format!("{}{}", random.pick(TEXTS), random.pick(TEXTS))),
        _ => json!(random.pick(TEXTS)),
    }
}

fn value(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 4 } else { 7 }) {
        4 => (0..random.below(4)).map(|_| value(random, depth - 1)).collect(),
        5 | 6 => {
            let entry = |random: &mut Random| (random.pick(NAMES).to_string(), value(random, depth - 1));
            Value::Object((0..random.below(5)).map(|_| entry(random)).collect::<Map<_, _>>())
        }
        _ => scalar(random),
    }
}

/// The number of values within a value, itself included.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(size).sum(),
        Value::Object(map) => map.values().map(size).sum(),
        _ => 0,
    }
}

/// The value of a number, counted as in [`size`].
fn find<'a>(value: &'a mut Value, number: &mut usize) -> Option<&'a mut Value> {
    if *number == 0 {
        return Some(value);
    }
    *number -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|each| find(each, number)),
        Value::Object(map) => map.values_mut().find_map(|each| find(each, number)),
        _ => None,
    }
}

fn mutate(random: &mut Random, body: &mut Value) {
    let mut number = random.below(size(body));
    let Some(place) = find(body, &mut number) else { return };
    match (random.below(6), place) {
        (0, Value::Array(list)) if !list.is_empty() => drop(list.remove(random.below(list.len()))),
        (1, Value::Array(list)) if !list.is_empty() => list.push(list[random.below(list.len())].clone()),
        (0, Value::Object(map)) if !map.is_empty() => {
            let name = map.keys().nth(random.below(map.len())).cloned().unwrap_or_default();
            map.remove(&name);
        }
        (1, Value::Object(map)) if !map.is_empty() => {
            let moved = map.values().nth(random.below(map.len())).cloned().unwrap_or_default();
            map.insert(random.pick(NAMES).to_string(), moved);
        }
        (2 | 3, Value::Object(map)) => drop(map.insert(random.pick(NAMES).to_string(), value(random, 3))),
        (4, Value::String(text)) => text.push_str(random.pick(TEXTS)),
        (_, place) => *place = value(random, 3),
    }
}

/// Changes bytes, so that the text may be no JSON and no UTF-8 any more.
fn spoil(random: &mut Random, body: &mut Vec<u8>) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(body.len());
        match random.below(5) {
            0 => body.truncate(at),
            1 if !body.is_empty() => body[at] ^= 1 << random.below(8),
            2 => body.insert(at, random.next() as u8),
            3 => drop(body.splice(at..at, b"[{\"a\":".repeat(random.below(200)))),
            _ => {
                let odd: [&[u8]; 6] = [b"\\ud800", b"\\u0000", b"\xff", b"1e9999", b",", b"}"];
                drop(body.splice(at..at, random.pick(&odd).iter().copied()));
            }
        }
    }
}

fn seeds() -> Vec<(&'static str, Value)> {
    let weather =
        json!({"type": "object", "properties": {"city": {"enum": ["القاهرة", "دمشق"]}}, "required": ["city"]});
    let tool = json!({"type": "function", "function": {"name": "get_weather", "parameters": weather}});
    let question = json!([{"role": "system", "content": "أجب"}, {"role": "user", "content": "السلام عليكم"}]);
    let called = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"دمشق\"}"}}]});
    let form = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": weather, "strict": true}});
    vec![
        (
            "/v1/chat/completions",
            json!({"model": "bayan", "messages": question, "max_tokens": 4, "n": 2, "seed": 1,
            "stop": ["،"], "logprobs": true, "top_logprobs": 2, "logit_bias": {"5": -3}, "temperature": 0.7}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": question, "max_tokens": 4, "response_format": form,
            "stream": true, "stream_options": {"include_usage": true}}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [question[1], called,
            {"role": "tool", "tool_call_id": "call_1", "content": "مشمس"}], "tools": [tool],
            "tool_choice": {"type": "function", "function": {"name": "get_weather"}}, "max_tokens": 5}),
        ),
        (
            "/v1/completions",
            json!({"prompt": ["عاصمة", "مصر"], "max_tokens": 3, "echo": true, "logprobs": 2,
            "top_p": 0.9, "top_k": 40, "regex": "[0-9]{1,3}"}),
        ),
        ("/v1/completions", json!({"prompt": [[5, 6, 7], [8, 9]], "max_tokens": 0, "echo": true, "logprobs": 1})),
        ("/v1/completions", json!({"prompt": "س", "max_tokens": 4, "grammar": "start: \"نعم\" | \"لا\""})),
        (
            "/v1/responses",
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "ما الطقس؟"}]}],
            "instructions": "أجب", "max_output_tokens": 5, "stream": true,
            "tools": [{"type": "function", "name": "get_weather", "parameters": weather}], "tool_choice": "auto"}),
        ),
        ("/v1/responses", json!({"input": "سؤال", "text": {"format": form}, "max_output_tokens": 4})),
        (
            "/v1/messages",
            json!({"model": "bayan", "max_tokens": 5, "system": "أجب", "messages": [
            {"role": "user", "content": "ما الطقس؟"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "مشمس"}]}],
            "tools": [{"name": "get_weather", "input_schema": weather}], "tool_choice": {"type": "any"},
            "stop_sequences": ["."], "stream": true}),
        ),
        ("/v1/messages/count_tokens", json!({"messages": [{"role": "user", "content": "كم؟"}], "system": "أجب"})),
        ("/tokenize", json!({"prompt": "نص <|im_end|>", "add_special_tokens": true, "return_token_strs": true})),
        ("/detokenize", json!({"tokens": [1, 2, 3]})),
        ("/apply-template", json!({"messages": question, "chat_template_kwargs": {"a": 1}})),
        ("/v1/load_lora_adapter", json!({"lora_name": "x", "lora_path": "adapter_init"})),
        ("/v1/unload_lora_adapter", json!({"lora_name": "x"})),
    ]
}

/// The next request: a route and a body.
fn request(random: &mut Random, seeds: &[(&'static str, Value)]) -> (&'static str, Vec<u8>) {
    let (route, mut body) = seeds[random.below(seeds.len())].clone();
    // A body of another route, now and then.
    if random.below(20) == 0 {
        body = seeds[random.below(seeds.len())].1.clone();
    }
    for _ in 0..random.below(5) {
        mutate(random, &mut body);
    }
    if random.below(40) == 0 {
        body = value(random, 5);
    }
    let mut bytes = body.to_string().into_bytes();
    if random.below(6) == 0 {
        spoil(random, &mut bytes);
    }
    (route, bytes)
}

/// Whether an answer is one that the interface allows.
fn check(got: &Got) -> Result<(), String> {
    let text = String::from_utf8(got.body.clone()).map_err(|error| error.to_string())?;
    let stream = got.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
    match got.status {
        200 if stream => {
            let internal = ["\"internal\"", "server_error", "device_lost", "engine_ended"];
            match internal.iter().find(|word| text.contains(**word)) {
                Some(word) => Err(format!("{word} within a stream: {text}")),
                None => Ok(()),
            }
        }
        200 => serde_json::from_str::<Value>(&text).map(drop).map_err(|error| format!("{error}: {text}")),
        400..500 => {
            let body: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
            if body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()) {
                return Ok(());
            }
            Err(format!("an error without a message: {text}"))
        }
        status => Err(format!("status {status}: {text}")),
    }
}

fn fuzz(server: &Running, first: u64, until: Instant) -> usize {
    let seeds = seeds();
    let mut done = 0;
    for seed in (first..).step_by(2) {
        if Instant::now() > until {
            break;
        }
        let (route, body) = request(&mut Random(seed), &seeds);
        let start = Instant::now();
        let got = server.ask(route, Some(&body), &[]);
        let shown = || format!("seed {seed}, {route}: {}", String::from_utf8_lossy(&body));
        if let Err(problem) = check(&got) {
            panic!("{problem}\n{}", shown());
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{:?} for {}", start.elapsed(), shown());
        done += 1;
    }
    done
}

#[test]
fn no_json_makes_the_server_fail() {
    let seconds = std::env::var("BAYAN_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/lora/llama3_r8_all");
    let server = server_with(ServerOptions {
        model: "bayan".into(),
        adapter_dir: Some(folder.into()),
        limits: Limits { max_tokens: Some(6), choices: 16, ..Default::default() },
        ..Default::default()
    });
    let short = crate::with(question("السلام عليكم"), json!({"max_tokens": 6}));
    let before = content(&server.chat(short.clone()).good());
    let until = Instant::now() + Duration::from_secs(seconds);
    let counts = std::thread::scope(|scope| {
        let threads = [0, 1].map(|first| {
            scope.spawn({
                let server = &server;
                move || fuzz(server, first, until)
            })
        });
        threads.map(|thread| thread.join().expect("no answer is wrong"))
    });
    println!("{} requests", counts.iter().sum::<usize>());
    assert!(counts.iter().sum::<usize>() > 20, "{counts:?}");
    server.wait_for("bayan_requests_running", |running| running == 0.0);
    assert_eq!(server.metric("bayan_requests_queued"), 0.0);
    assert_eq!((server.metric("bayan_recoveries_total"), server.get("/ready").status), (0.0, 200));
    assert_eq!(content(&server.chat(short).good()), before, "and it answers as before");
}
