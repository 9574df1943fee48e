//! Grammars on models with random weights: whatever the model prefers, what ends by itself is valid. Each schema's
//! answers are checked by a validator that knows nothing of grammars.

use std::ops::ControlFlow;

use bayan_generate::{
    Constraint, Engine, EngineOptions, Event, FinishReason, Grammar, GrammarError, Job, LARGEST_BIAS, SampleSettings,
    StepSizes, TextPipeline,
};
use bayan_gpu::{GpuOptions, block_on};
use serde_json::{Value, json};

use crate::*;

/// Schemas of all kinds: at least one document of each is short.
fn schemas() -> Vec<Value> {
    let text = include_str!("schemas.jsonl");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn pipeline(name: &str) -> TextPipeline {
    block_on(TextPipeline::open(checkpoint(name).source().as_ref(), None)).expect("a tokenizer")
}

/// Biases that make a random model end strings, lists and objects, so that answers are short.
fn closing(text: &TextPipeline) -> Vec<(u32, f32)> {
    let bias = |id: u32| {
        let first = *text.tokenizer.token_bytes(id)?.first()?;
        match first {
            b'"' | b'}' | b']' | b'@' | b':' => Some((id, 9.0)),
            // The end of a time.
            b'Z' => Some((id, 5.0)),
            _ => None,
        }
    };
    (0..=text.tokenizer.largest_id().unwrap()).filter_map(bias).collect()
}

struct Answered {
    text: String,
    finish: FinishReason,
    fault: Option<String>,
}

/// The answers of jobs that run together.
fn answers(engine: &mut Engine, text: &TextPipeline, jobs: Vec<Job>) -> Vec<Answered> {
    let added: Vec<_> = jobs.into_iter().map(|job| engine.add(job).unwrap()).collect();
    let mut events: std::collections::BTreeMap<u64, Vec<Event>> = Default::default();
    while block_on(engine.advance(&mut |id, event| {
        events.entry(id).or_default().push(event);
        ControlFlow::Continue(())
    }))
    .unwrap()
    {}
    let answered = |id: u64| {
        let mut answer = bayan_generate::AnswerText::new(&text.tokenizer, &[], true);
        let (mut shown, mut finish, mut fault) = (String::new(), None, None);
        for event in &events[&id] {
            match event {
                Event::Token { id, .. } => shown.push_str(&answer.push(*id).unwrap()),
                Event::Fault(problem) => fault = Some(problem.clone()),
                Event::Ended(usage) => finish = Some(usage.finish),
                _ => {}
            }
        }
        shown.push_str(&answer.end());
        Answered { text: shown, finish: finish.expect("an end"), fault }
    };
    added.into_iter().map(answered).collect()
}

fn serving() -> EngineOptions {
    EngineOptions { sizes: StepSizes::Listed, sequences: 8, context: Some(512), prefill_chunk: Some(32), ..exact() }
}

fn constrained(grammar: &Grammar, bias: &[(u32, f32)], stop: &[u32], seed: u64) -> Job {
    Job {
        prompt: vec![3, 4, 5],
        settings: SampleSettings { temperature: 1.0, seed, ..Default::default() },
        bias: bias.to_vec(),
        stop: stop.to_vec(),
        max_tokens: 400,
        grammar: Some(grammar.clone()),
        ..Default::default()
    }
}

#[test]
fn every_schema_gives_valid_documents() {
    let gpu = gpu(GpuOptions::default());
    let schemas = schemas();
    assert!(schemas.len() >= 60, "{} schemas", schemas.len());
    // A byte-level vocabulary, and one of SentencePiece with single bytes.
    for (name, every) in [("qwen3_qknorm", 1), ("llama2_mha", 4)] {
        let schemas: Vec<Value> = schemas.iter().step_by(every).cloned().collect();
        let text = pipeline(name);
        let grammars = text.tokenizer.grammars().unwrap();
        let bias = closing(&text);
        let mut engine = engine(name, &gpu, serving());
        let compile = |schema: &Value| {
            let compiled = grammars.compile(&Constraint::JsonSchema(schema.clone()));
            compiled.unwrap_or_else(|error| panic!("{schema}: {error}"))
        };
        let jobs = schemas.iter().zip(1..).map(|(schema, seed)| constrained(&compile(schema), &bias, &text.stop, seed));
        let jobs: Vec<Job> = jobs.collect();
        for (schema, answer) in schemas.iter().zip(answers(&mut engine, &text, jobs)) {
            let Answered { text, finish, fault } = answer;
            assert_eq!((finish, fault), (FinishReason::Stop, None), "{name}: {schema}: {text}");
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {schema}: {e}: {text}"));
            let problem = crate::schema::problem(schema, schema, &value);
            assert_eq!(problem, None, "{name}: {schema}: {text}");
        }
    }
}

#[test]
fn wrong_schemas_and_grammars_are_refused() {
    let text = pipeline("qwen3_qknorm");
    let grammars = text.tokenizer.grammars().unwrap();
    let schema = |value: Value| Constraint::JsonSchema(value);
    let deep = |open: &str, close: &str, count: usize| open.repeat(count) + "a" + &close.repeat(count);
    let chain: String = (0..3000).map(|i| format!("A{i}: A{}\n", i + 1)).collect();
    let wrong = [
        schema(json!(false)),
        schema(json!([])),
        schema(json!({"type": "text"})),
        schema(json!({"type": "string", "pattern": "("})),
        schema(json!({"$ref": "#/$defs/missing"})),
        schema(json!({"$ref": "http://127.0.0.1:1/schema.json"})),
        schema(json!({"type": "integer", "minimum": 5, "maximum": 4})),
        schema(json!({"enum": []})),
        schema(json!({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 3}]})),
        schema(json!({"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}})),
        schema(json!({"type": "object", "x-guidance": {"lenient": true}})),
        schema(json!({"type": "string", "pattern": deep("(", ")", 5000)})),
        Constraint::Regex("[".into()),
        Constraint::Regex(deep("(", ")", 5000)),
        Constraint::Lark("start: missing".into()),
        Constraint::Lark("root ::= \"a\"".into()),
        Constraint::Lark(String::new()),
        Constraint::Lark(format!("start: {}", deep("(", ")", 5000))),
        Constraint::Lark(format!("start: A0\n{chain}")),
        Constraint::Regex("x".repeat(1 << 20)),
    ];
    for constraint in wrong {
        let shown: String = format!("{constraint:?}").chars().take(100).collect();
        match grammars.compile(&constraint) {
            Err(GrammarError::Source { problem, .. }) => assert!(!problem.is_empty(), "{shown}"),
            other => panic!("{shown}: {:?}", other.map(drop)),
        }
    }
}

#[test]
fn expressions_and_grammars_are_matched_as_a_whole() {
    let gpu = gpu(GpuOptions::default());
    for name in ["qwen3_qknorm", "llama2_mha"] {
        let text = pipeline(name);
        let grammars = text.tokenizer.grammars().unwrap();
        let mut engine = engine(name, &gpu, serving());
        let cases = [
            Constraint::Regex("(نعم|لا)".into()),
            Constraint::Regex(" [a-c]{2,5}".into()),
            Constraint::Regex("".into()),
            Constraint::Regex("[0-9]{4}-[0-9]{2}".into()),
            Constraint::Lark("start: item (\", \" item){2}\nitem: \"سين\" | \"b\"".into()),
        ];
        let checks: [fn(&str) -> bool; 5] = [
            |text| ["نعم", "لا"].contains(&text),
            |text| {
                text.strip_prefix(' ')
                    .is_some_and(|rest| (2..=5).contains(&rest.len()) && rest.bytes().all(|b| b"abc".contains(&b)))
            },
            str::is_empty,
            |text| {
                text.len() == 7
                    && text.bytes().enumerate().all(|(i, b)| if i == 4 { b == b'-' } else { b.is_ascii_digit() })
            },
            |text| text.split(", ").count() == 3 && text.split(", ").all(|item| ["سين", "b"].contains(&item)),
        ];
        let compile = |case: &Constraint| grammars.compile(case).unwrap();
        // Without stop tokens too: a complete text ends the answer.
        for stop in [text.stop.as_slice(), &[]] {
            let jobs = cases.iter().zip(1..).map(|(case, seed)| constrained(&compile(case), &[], stop, seed)).collect();
            for ((case, answer), check) in cases.iter().zip(answers(&mut engine, &text, jobs)).zip(checks) {
                assert_eq!(answer.finish, FinishReason::Stop, "{name}: {case:?}: {}", answer.text);
                assert!(check(&answer.text), "{name}: {case:?}: {:?}", answer.text);
            }
        }
    }
}

#[test]
fn a_grammar_wins_over_biases_and_others_are_not_affected() {
    let gpu = gpu(GpuOptions::default());
    let name = "qwen3_qknorm";
    let text = pipeline(name);
    let vocabulary = text.tokenizer.largest_id().unwrap() + 1;
    let digits = text.tokenizer.grammars().unwrap().compile(&Constraint::Regex("[0-9]{8}".into())).unwrap();
    let mut engine = engine(name, &gpu, serving());
    let plain = |seed| Job {
        prompt: vec![3, 4, 5, 6],
        settings: SampleSettings { temperature: 0.8, seed, ..Default::default() },
        max_tokens: 30,
        ..Default::default()
    };
    let alone = answers(&mut engine, &text, vec![plain(1), plain(2), plain(3)]);
    // All digits are banned, and a letter is forced: the grammar holds.
    let all: Vec<(u32, f32)> = (0..vocabulary).map(|id| (id, if id == 64 { LARGEST_BIAS } else { -90.0 })).collect();
    let beside = answers(&mut engine, &text, vec![plain(1), constrained(&digits, &all, &text.stop, 5), plain(3)]);
    assert_eq!(beside[1].finish, FinishReason::Stop);
    assert!(beside[1].text.len() == 8 && beside[1].text.bytes().all(|b| b.is_ascii_digit()), "{}", beside[1].text);
    // The same number of answers: the same kernels.
    assert_eq!((&beside[0].text, &beside[2].text), (&alone[0].text, &alone[2].text));
}

#[test]
fn every_allowed_token_can_be_taken() {
    for name in ["qwen3_qknorm", "llama2_mha"] {
        let text = pipeline(name);
        let grammars = text.tokenizer.grammars().unwrap();
        let largest = text.tokenizer.largest_id().unwrap();
        let mut random = 1u64;
        for schema in schemas() {
            let compiled = grammars.compile(&Constraint::JsonSchema(schema.clone())).unwrap();
            for walk in 0..2 {
                let (mut grammar, mut ids) = (compiled.clone(), Vec::new());
                for _ in 0..40 {
                    if walk % 2 == 1 {
                        grammar.allowed().unwrap();
                    }
                    let allowed = grammar.allowed().unwrap();
                    let tokens: Vec<u32> = (0..=largest).filter(|id| allowed.token(*id)).collect();
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let Some(&id) = tokens.get((random >> 33) as usize % tokens.len().max(1)) else { break };
                    ids.push(id);
                    let taken = grammar.take(id);
                    let shown = || text.tokenizer.decode(&ids, false).unwrap();
                    if taken.unwrap_or_else(|error| panic!("{name}: {schema}: {}: {error}", shown())) {
                        break;
                    }
                }
            }
        }
    }
}

/// The sampler's hash (shaders/sampling/pick.wgsl).
fn hash(value: u32) -> u32 {
    let state = value.wrapping_mul(747796405).wrapping_add(2891336453);
    let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277803737);
    (word >> 22) ^ word
}

#[test]
fn the_largest_random_number_draws_no_banned_token() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("qwen3_qknorm", &gpu, EngineOptions { context: Some(64), ..exact() });
    let vocabulary = engine.decoder().sizes().vocab_size as u32;
    let prompt = [3, 4, 5];
    for position in [2, 3] {
        // A seed with which one token draws the largest of all random numbers.
        let of_position = hash(hash(position));
        let drawn = |seed: u64| {
            let mixed = hash(seed as u32 ^ of_position);
            (8..vocabulary).find(|id| hash(hash(*id) ^ mixed) >> 8 == 0xff_ffff).map(|id| (seed, id))
        };
        let (seed, banned) = (0u64..1 << 20).find_map(drawn).expect("a seed");
        let settings = SampleSettings { temperature: 1.0, seed, ..Default::default() };
        let mut tokens = Vec::new();
        let mut collect = |id| {
            tokens.push(id);
            ControlFlow::Continue(())
        };
        block_on(engine.generate(&prompt, &settings, &[(banned, f32::NEG_INFINITY)], &[], 3, &mut collect)).unwrap();
        assert!(!tokens.contains(&banned), "token {banned} is banned, seed {seed}: {tokens:?}");
    }
}
