//! Results and costs of a step: kernels compared with the interpreter, several sequences, prompts and single tokens.

use std::ops::ControlFlow;
use std::path::PathBuf;

use bayan_generate::{EngineOptions, FinishReason, Request, SampleSettings};
use bayan_gpu::{GpuOptions, block_on};
use bayan_tensor::{Dtype, Plan, Tuning, Values, interpret, nmse};

use crate::*;

#[test]
fn kernels_and_interpreter_agree_node_by_node() {
    let gpu = gpu(GpuOptions::default());
    for name in models().iter().map(String::as_str) {
        for tokens in [1, 19] {
            let (device, host) = (load(name, Some(&gpu), 1, "f32"), load(name, None, 1, "f32"));
            let step = [(0, 0, ids(tokens, device.decoder.sizes().vocab_size))];
            let (host_graph, _) = record(&host, &step);
            let expected = interpret(&host_graph);
            // No fusion, and every tensor kept, so that the first node that differs can be named.
            let (graph, _) = record(&device, &step);
            let outputs: Vec<_> = graph
                .nodes()
                .iter()
                .flat_map(|node| node.outputs.iter().copied())
                .filter(|&t| graph.info(t).state.is_none())
                .collect();
            let tuning = Tuning { fuse: false, ..Tuning::defaults(gpu.capabilities()) };
            let plan = Plan::new(&gpu, graph.clone(), &outputs, &tuning).unwrap();
            plan.submit(&gpu, 64, &[]);
            for node in graph.nodes() {
                for &output in node.outputs.iter().filter(|&&t| graph.info(t).state.is_none()) {
                    let request = plan.read_request(output);
                    let bytes = block_on(gpu.read(&request.buffer, 0, request.size_bytes)).unwrap();
                    let error = nmse(
                        expected[output.index()].as_ref().unwrap().f32(),
                        Values::from_bytes(&bytes, Dtype::F32).f32(),
                    );
                    assert!(
                        error < 1e-8,
                        "{name}, {tokens} tokens: first difference at `{}` ({}), NMSE {error:.2e}",
                        node.op.name(),
                        output.index()
                    );
                }
            }
        }
    }
}

#[test]
fn several_sequences_in_one_step_are_what_each_is_alone() {
    let gpu = gpu(GpuOptions::default());
    for name in ["llama3_gqa", "qwen3_qknorm"] {
        let together = load(name, Some(&gpu), 2, "q8_0");
        let vocabulary = together.decoder.sizes().vocab_size;
        let (first, second) = (ids(11, vocabulary), ids(30, vocabulary)[9..].to_vec());
        // Two prompts in one step, then one new token of each in one step.
        let prompts = run(&together, &[(0, 0, first.clone()), (1, 0, second.clone())]);
        let tokens = run(&together, &[(0, 11, vec![3]), (1, 21, vec![5])]);
        for (index, (prompt, token)) in [(first, 3), (second, 5)].into_iter().enumerate() {
            let alone = load(name, Some(&gpu), 1, "q8_0");
            let expected = run(&alone, &[(0, 0, prompt.clone())]);
            let start = if index == 0 { 0 } else { 11 } * vocabulary;
            assert!(nmse(&expected, &prompts[start..start + expected.len()]) < 1e-9, "{name}: prompt {index}");
            let expected = run(&alone, &[(0, prompt.len(), vec![token])]);
            assert!(
                nmse(&expected, &tokens[index * vocabulary..(index + 1) * vocabulary]) < 1e-9,
                "{name}: token {index}"
            );
        }
    }
}

#[test]
fn many_prompts_answer_as_each_does_alone() {
    let gpu = gpu(GpuOptions::default());
    let vocabulary = 500;
    let prompts: Vec<Vec<u32>> =
        [5, 19, 1, 30, 8].iter().enumerate().map(|(i, &n)| ids(n + i, vocabulary)[i..].to_vec()).collect();
    for name in ["llama3_gqa", "mistral_swa"] {
        let mut alone = engine(name, &gpu, exact());
        let settings = |i: usize| SampleSettings {
            temperature: if i.is_multiple_of(2) { 0.0 } else { 0.8 },
            repeat_penalty: 1.0 + 0.1 * i as f32,
            seed: i as u64,
            ..Default::default()
        };
        let wanted = |i: usize| [12, 3, 9, 20, 6][i];
        let expected: Vec<Vec<u32>> = (0..prompts.len())
            .map(|i| {
                let mut tokens = Vec::new();
                alone.reset();
                block_on(alone.generate(&prompts[i], &settings(i), &[], &[], wanted(i), &mut |token| {
                    tokens.push(token);
                    ControlFlow::Continue(())
                }))
                .unwrap();
                tokens
            })
            .collect();
        // The third answer also ends at a stop token, and the last one through its callback.
        let stop = [expected[2][4]];
        for sequences in [1, 2, 3, 5] {
            let mut many = engine(name, &gpu, EngineOptions { sequences, context: Some(64), ..exact() });
            let request = |i: usize| Request {
                prompt: &prompts[i],
                settings: settings(i),
                bias: &[],
                stop: if i == 2 { &stop } else { &[] },
                max_tokens: wanted(i),
                grammar: None,
                scores: None,
            };
            let requests: Vec<_> = (0..prompts.len()).map(request).collect();
            // The second time the prompts are cached, not all in the same slot.
            for _ in 0..2 {
                let mut tokens = vec![Vec::new(); prompts.len()];
                let usages = block_on(many.generate_many(&requests, &mut |i, token, _| {
                    tokens[i].push(token);
                    if i == 4 && tokens[i].len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                }))
                .unwrap();
                let first = expected[2].iter().position(|&token| token == stop[0]).unwrap();
                for (i, expected) in expected.iter().enumerate() {
                    let (count, finish) = match i {
                        2 => (first, FinishReason::Stop),
                        4 => (2, FinishReason::Stopped),
                        _ => (wanted(i), FinishReason::Length),
                    };
                    assert_eq!(tokens[i], expected[..count], "{name}, {sequences} at a time, prompt {i}");
                    assert_eq!(
                        (usages[i].finish, usages[i].generated_tokens, usages[i].prompt_tokens),
                        (finish, count, prompts[i].len())
                    );
                }
            }
        }
    }
}

#[test]
fn a_token_costs_six_dispatches_a_layer_and_five() {
    let gpu = gpu(GpuOptions::default());
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/dispatches.json");
    let more: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for name in models().iter().map(String::as_str) {
        let mut engine = engine(name, &gpu, EngineOptions { policy: policy("q4_0"), ..Default::default() });
        let layers = engine.decoder().sizes().num_hidden_layers;
        let cost = engine.decode_cost().unwrap();
        // Norms after a sub-layer, norms with a mean, and a final cap need further dispatches; the file lists them.
        let more = more.get(name).and_then(|more| more["dispatches"].as_array());
        let [a_layer, besides] =
            more.map_or([6, 5], |list| [0, 1].map(|index| list[index].as_u64().expect("a number") as usize));
        assert!(
            cost.dispatches <= a_layer * layers + besides,
            "{name}: {} dispatches for {layers} layers",
            cost.dispatches
        );
        assert_eq!(cost.passes, 1, "{name}");
    }
}

#[test]
fn decoding_one_by_one_is_prefilling() {
    let gpu = gpu(GpuOptions::default());
    for name in models().iter().map(String::as_str) {
        let mut engine = engine(name, &gpu, exact());
        let prompt = ids(40, engine.decoder().sizes().vocab_size);
        let whole = block_on(engine.logits(&prompt, false)).unwrap();
        let generated = greedy(&mut engine, &prompt, 6);
        // The same tokens as a prompt give the same continuation.
        let longer = [&prompt[..], &generated[..5]].concat();
        let again = block_on(engine.logits(&longer, true)).unwrap();
        assert!(nmse(&whole[0], &again[39]) < 1e-9, "{name}");
        for (step, token) in generated.iter().enumerate() {
            let row = &again[39 + step];
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert!(best - row[*token as usize] < 1e-3, "{name}: token {step}");
        }
    }
}

/// Compiling takes longer than computing: a second question must not wait for it.
#[test]
fn prompts_of_other_lengths_need_no_new_kernels() {
    let gpu = gpu(GpuOptions::default());
    for name in ["llama3_gqa", "gemma2_softcap"] {
        let mut engine = engine(name, &gpu, EngineOptions { policy: policy("q4_0"), ..Default::default() });
        let vocabulary = engine.sizes().vocab_size;
        let mut kernels_after = |count| {
            block_on(engine.logits(&ids(count, vocabulary), false)).unwrap();
            gpu.kernel_texts().len()
        };
        let first = kernels_after(40);
        assert_eq!([41, 47, 61].map(kernels_after), [first; 3], "{name}");
    }
}
