//! The engine on this machine's device, on tiny checkpoints with random weights: kernels against the interpreter node
//! by node, several sequences in one step, the cost of a token, prefixes that are kept, shards, limits.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::rc::Rc;

use bayan_generate::{Engine, EngineOptions, Finish, GenerateError, Request, SampleSettings};
use bayan_gpu::{Gpu, GpuOptions, block_on};
use bayan_models::{Cache, CacheFormat, CacheShape, Decoder, LayerNeeds, Opening, StepInputs};
use bayan_tensor::ops::{Causality, QUERY_TILE};
use bayan_tensor::{Dtype, Graph, Plan, State, Tuning, Values, interpret, nmse};
use bayan_weights::{Checkpoint, DirectorySource, Policy, format_by_name};

/// The checkpoints of tests/fixtures/models, by name.
fn models() -> Vec<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    let mut names: Vec<String> =
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Those that have a layer with such cache needs.
fn described(layer: impl Fn(&LayerNeeds) -> bool) -> Vec<String> {
    let has = |name: &String| {
        let described = bayan_models::describe(checkpoint(name).config()).expect("a description");
        described.cache.iter().any(&layer)
    };
    let found: Vec<String> = models().into_iter().filter(has).collect();
    assert!(found.len() > 1, "only {found:?}");
    found
}

#[test]
fn every_architecture_has_a_checkpoint_here() {
    let types: Vec<String> =
        models().iter().map(|name| checkpoint(name).config()["model_type"].as_str().unwrap().to_string()).collect();
    for architecture in bayan_models::supported() {
        assert!(types.iter().any(|found| found == architecture), "{architecture}");
    }
}

fn checkpoint(name: &str) -> Checkpoint {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name);
    block_on(Checkpoint::open(Rc::new(DirectorySource::new(path).unwrap()))).unwrap()
}

fn gpu(options: GpuOptions) -> Gpu {
    block_on(Gpu::open(&options)).expect("a device")
}

fn policy(format: &str) -> Option<Policy> {
    Some(Policy::for_format(format_by_name(format).unwrap()))
}

fn engine(name: &str, gpu: &Gpu, options: EngineOptions) -> Engine {
    block_on(Engine::open(&checkpoint(name), gpu, &options, &mut |_, _| {})).unwrap()
}

fn exact() -> EngineOptions {
    EngineOptions { cache: CacheFormat::F32, policy: policy("f32"), ..Default::default() }
}

fn ids(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + 13) % vocabulary) as u32).collect()
}

fn greedy(engine: &mut Engine, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    let mut collect = |token| {
        tokens.push(token);
        ControlFlow::Continue(())
    };
    block_on(engine.generate(prompt, &SampleSettings::default(), &[], &[], count, &mut collect)).unwrap();
    tokens
}

/// A model with a cache, on the device or on the host.
struct Loaded {
    decoder: Box<dyn Decoder>,
    cache: Cache,
    gpu: Option<Gpu>,
}

fn load(name: &str, gpu: Option<&Gpu>, sequences: usize, format: &str) -> Loaded {
    let context = 64;
    let decoder =
        block_on(bayan_models::open(&checkpoint(name), gpu, &Opening { context }, policy(format), &mut |_, _| {}))
            .unwrap();
    let shape = CacheShape { sequences, context, format: CacheFormat::F32, step: None };
    let cache = Cache::new(gpu, shape, &decoder.cache_needs()).unwrap();
    Loaded { decoder, cache, gpu: gpu.cloned() }
}

/// Records a step of tokens of several sequences: (sequence, first position, ids).
fn record(model: &Loaded, parts: &[(usize, usize, Vec<u32>)]) -> (Graph, bayan_tensor::Tensor) {
    let gpu = model.gpu.as_ref();
    let (mut tokens, mut positions, mut bases, mut tiles) = (vec![], vec![], vec![], vec![]);
    for (sequence, first, ids) in parts {
        for start in (0..ids.len()).step_by(QUERY_TILE) {
            tiles.extend([(tokens.len() + start) as u32, QUERY_TILE.min(ids.len() - start) as u32]);
        }
        tokens.extend_from_slice(ids);
        positions.extend((*first..first + ids.len()).map(|p| p as u32));
        bases.extend(ids.iter().map(|_| (sequence * model.cache.shape.context) as u32));
    }
    let state = |values: Vec<u32>, shape: &[usize]| State::new(gpu, "step", shape, Values::U32(values)).unwrap();
    let count = tokens.len();
    let tile_count = tiles.len() / 2;
    let mut graph = Graph::new();
    let [tokens, positions, bases] = [tokens, positions, bases].map(|values| state(values, &[count]));
    let tiles = state(tiles, &[tile_count, 2]);
    let over = Causality { positions: graph.state(&positions), bases: graph.state(&bases), tiles: graph.state(&tiles) };
    let inputs = StepInputs { tokens: graph.state(&tokens), over, rows: None };
    let logits = model.decoder.forward(&mut graph, inputs, &model.cache);
    (graph, logits)
}

fn run(model: &Loaded, parts: &[(usize, usize, Vec<u32>)]) -> Vec<f32> {
    let gpu = model.gpu.as_ref().unwrap();
    let (graph, logits) = record(model, parts);
    let plan = Plan::new(gpu, graph, &[logits], &Tuning::defaults(gpu.capabilities())).unwrap();
    let reads = plan.submit(gpu, 64, &[plan.read_request(logits)]);
    let bytes = reads.into_iter().map(|read| block_on(read.wait()).unwrap()).next().unwrap();
    Values::from_bytes(&bytes, Dtype::F32).f32().to_vec()
}

#[test]
fn kernels_and_interpreter_agree_node_by_node() {
    let gpu = gpu(GpuOptions::default());
    for name in models().iter().map(String::as_str) {
        for tokens in [1, 19] {
            let (device, host) = (load(name, Some(&gpu), 1, "f32"), load(name, None, 1, "f32"));
            let step = [(0, 0, ids(tokens, device.decoder.sizes().vocab_size))];
            let (host_graph, _) = record(&host, &step);
            let expected = interpret(&host_graph);
            // Unfused and everything kept, so that the first node that differs can be named.
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
        // The third answer also ends at a stop token, and the last by its reader.
        let stop = [expected[2][4]];
        for sequences in [1, 2, 3, 5] {
            let mut many = engine(name, &gpu, EngineOptions { sequences, context: Some(64), ..exact() });
            let request = |i: usize| Request {
                prompt: &prompts[i],
                settings: settings(i),
                bias: &[],
                stop: if i == 2 { &stop } else { &[] },
                max_tokens: wanted(i),
            };
            let requests: Vec<_> = (0..prompts.len()).map(request).collect();
            // The second time the prompts are in the cache, not all in the same place.
            for _ in 0..2 {
                let mut tokens = vec![Vec::new(); prompts.len()];
                let usages = block_on(many.generate_many(&requests, &mut |i, token| {
                    tokens[i].push(token);
                    if i == 4 && tokens[i].len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                }))
                .unwrap();
                let first = expected[2].iter().position(|&token| token == stop[0]).unwrap();
                for (i, expected) in expected.iter().enumerate() {
                    let (count, finish) = match i {
                        2 => (first, Finish::Stop),
                        4 => (2, Finish::Stopped),
                        _ => (wanted(i), Finish::Length),
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
fn streamed_layers_change_nothing_but_the_memory() {
    let gpu = gpu(GpuOptions::default());
    for (name, format) in [("llama3_gqa", "q4_k"), ("qwen3_qknorm", "f16")] {
        let open = |gpu_layers| {
            let before = gpu.allocated_bytes();
            let options = EngineOptions { gpu_layers, policy: policy(format), context: Some(64), ..exact() };
            let engine = engine(name, &gpu, options);
            let held = gpu.allocated_bytes() - before;
            (engine, held)
        };
        let prompt = ids(40, 500);
        let (mut whole, whole_bytes) = open(None);
        let expected = (greedy(&mut whole, &prompt, 12), block_on(whole.logits(&prompt, true)).unwrap());
        assert_eq!(whole.streamed_bytes(), 0);
        drop(whole);
        let layers = checkpoint(name).config()["num_hidden_layers"].as_u64().unwrap() as usize;
        for kept in 0..layers {
            let (mut partly, _) = open(Some(kept));
            assert!(partly.streamed_bytes() > 0);
            assert_eq!(
                (greedy(&mut partly, &prompt, 12), block_on(partly.logits(&prompt, true)).unwrap()),
                expected,
                "{name}, {kept} layers kept"
            );
        }
        // With as many layers as there are, nothing is streamed.
        let (all, all_bytes) = open(Some(layers));
        assert_eq!((all.streamed_bytes(), all_bytes), (0, whole_bytes));
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
        // Norms after a sub-layer, norms with a mean, and a final cap are dispatches of their own; the file says why.
        let [a_layer, besides] = more
            .get(name)
            .and_then(|more| more["dispatches"].as_array())
            .map_or([6, 5], |list| [0, 1].map(|index| list[index].as_u64().expect("a number") as usize));
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
        // The same tokens through the prompt's path give the same continuation.
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

#[test]
fn prefixes_are_kept_and_runs_repeat() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("qwen3_qknorm", &gpu, EngineOptions { policy: policy("q4_0"), ..Default::default() });
    let prompt = ids(30, engine.decoder().sizes().vocab_size);
    let settings =
        SampleSettings { temperature: 1.0, top_k: 40, top_p: 0.95, repeat_penalty: 1.1, seed: 7, ..Default::default() };
    let sample = |engine: &mut Engine, prompt: &[u32]| {
        let mut tokens = Vec::new();
        let mut collect = |token| {
            tokens.push(token);
            ControlFlow::Continue(())
        };
        let usage = block_on(engine.generate(prompt, &settings, &[], &[], 12, &mut collect)).unwrap();
        (tokens, usage)
    };
    let (first, usage) = sample(&mut engine, &prompt);
    assert_eq!((usage.cached_tokens, usage.finish), (0, Finish::Length));
    let longer = [&prompt[..], &first[..], &[4, 5]].concat();
    let (kept, usage) = sample(&mut engine, &longer);
    assert!(usage.cached_tokens >= prompt.len() + first.len() - 1, "kept {} of {}", usage.cached_tokens, longer.len());
    engine.reset();
    assert_eq!(sample(&mut engine, &longer).0, kept, "a kept prefix changes nothing");
    engine.reset();
    assert_eq!(sample(&mut engine, &prompt).0, first, "same seed, same device: same tokens");
}

#[test]
fn layers_with_a_window_keep_a_ring_and_give_the_same() {
    let gpu = gpu(GpuOptions::default());
    for name in described(|layer| layer.window.is_some_and(|window| window < 100)) {
        let name = name.as_str();
        let open =
            |chunk| engine(name, &gpu, EngineOptions { context: Some(300), prefill_chunk: Some(chunk), ..exact() });
        // A chunk as long as the context leaves no room for a ring; both round the same way where the kernels are the
        // same.
        let (mut whole, mut ring) = (open(300), open(16));
        assert!(
            ring.cache_bytes() < whole.cache_bytes(),
            "{name}: {} and {} bytes",
            ring.cache_bytes(),
            whole.cache_bytes()
        );
        let vocabulary = whole.decoder().sizes().vocab_size;
        let prompt = ids(250, vocabulary);
        let (a, b) = (
            block_on(whole.logits(&prompt, true)).unwrap().concat(),
            block_on(ring.logits(&prompt, true)).unwrap().concat(),
        );
        assert!(nmse(&a, &b) < 1e-9, "{name}");
        assert_eq!(greedy(&mut whole, &prompt, 40), greedy(&mut ring, &prompt, 40), "{name}");
        // Back to what is still there, and to what was overwritten.
        for kept in [280, 240, 100, 3] {
            let other = [&prompt[..kept.min(250)], &ids(kept + 9, vocabulary)[kept..]].concat();
            assert_eq!(greedy(&mut whole, &other, 8), greedy(&mut ring, &other, 8), "{name}: {kept} tokens kept");
        }
    }
}

#[test]
fn recurrent_models_go_on_where_they_stopped_or_start_anew() {
    let gpu = gpu(GpuOptions::default());
    for name in described(|layer| !layer.states.is_empty()) {
        let name = name.as_str();
        let open = || engine(name, &gpu, EngineOptions { context: Some(200), prefill_chunk: Some(16), ..exact() });
        let (mut engine, mut fresh) = (open(), open());
        let prompt = ids(40, engine.decoder().sizes().vocab_size);
        let answer = greedy(&mut engine, &prompt, 12);
        // An answer that ended at a stop token: the state has read all before it, and nothing after.
        let mut ended = Vec::new();
        let mut collect = |token| {
            ended.push(token);
            ControlFlow::Continue(())
        };
        engine.reset();
        let stop = *answer.iter().find(|&t| *t != answer[0]).unwrap_or(&answer[11]);
        block_on(engine.generate(&prompt, &SampleSettings::default(), &[], &[stop], 12, &mut collect)).unwrap();
        let longer = [&prompt[..], &ended[..], &[4, 5, 6]].concat();
        let usage = block_on(
            engine.generate(&longer, &SampleSettings::default(), &[], &[], 1, &mut |_| ControlFlow::Continue(())),
        )
        .unwrap();
        assert_eq!(usage.cached_tokens, prompt.len() + ended.len(), "{name}");
        let mut after = |prompt: &[u32], kept: bool| {
            fresh.reset();
            let expected = greedy(&mut fresh, prompt, 8);
            assert_eq!(greedy(&mut engine, prompt, 8), expected, "{name}, {kept}");
        };
        after(&longer, true);
        // Back to the middle, which the state cannot go to.
        after(&[&prompt[..20], &[9, 8, 7]].concat(), false);
    }
}

#[test]
fn quantized_caches_stay_near() {
    let gpu = gpu(GpuOptions::default());
    for name in ["llama3_gqa", "gemma2_softcap", "qwen3_qknorm"] {
        let open = |cache| {
            let mut engine = engine(name, &gpu, EngineOptions { cache, context: Some(256), ..exact() });
            let prompt = ids(150, engine.decoder().sizes().vocab_size);
            (
                block_on(engine.logits(&prompt, true)).unwrap().concat(),
                greedy(&mut engine, &prompt, 3).len(),
                engine.cache_bytes(),
            )
        };
        let (exact, _, most) = open(CacheFormat::F32);
        for (cache, bound, share) in
            [(CacheFormat::F16, 1e-5, 16), (CacheFormat::Q8_0, 1e-3, 9), (CacheFormat::Q4_0, 0.2, 5)]
        {
            let (logits, count, bytes) = open(cache);
            let error = nmse(&exact, &logits);
            assert!(error < bound && count == 3, "{name} {}: NMSE {error:.1e}", cache.name());
            assert_eq!(bytes, most / 32 * share, "{name} {}", cache.name());
        }
    }
}

#[test]
fn shards_change_nothing() {
    // 78 KiB hold less than the vocabulary matrices of these models in q8_0, and enough for everything else.
    let (whole, sharded) =
        (gpu(GpuOptions::default()), gpu(GpuOptions { max_binding_bytes: Some(78 << 10), ..Default::default() }));
    for name in ["llama2_mha", "qwen2_bias", "llama3_tied"] {
        let options = || EngineOptions {
            policy: policy("q8_0"),
            cache: CacheFormat::F32,
            context: Some(64),
            ..Default::default()
        };
        let (mut a, mut b) = (engine(name, &whole, options()), engine(name, &sharded, options()));
        let prompt = ids(12, a.decoder().sizes().vocab_size);
        assert!(b.decoder().matrices().iter().any(|matrix| matrix.shards().len() > 1), "{name}: nothing was sharded");
        let (a_logits, b_logits) =
            (block_on(a.logits(&prompt, true)).unwrap(), block_on(b.logits(&prompt, true)).unwrap());
        assert!(nmse(&a_logits.concat(), &b_logits.concat()) < 1e-12, "{name}");
        assert_eq!(greedy(&mut a, &prompt, 8), greedy(&mut b, &prompt, 8), "{name}");
    }
}

#[test]
fn tuning_measures_and_changes_no_token() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("qwen3_qknorm", &gpu, EngineOptions { policy: policy("q4_0"), ..Default::default() });
    let prompt = ids(20, engine.decoder().sizes().vocab_size);
    let before = greedy(&mut engine, &prompt, 8);
    let start = std::time::Instant::now();
    let measured = block_on(engine.autotune(&|| start.elapsed().as_secs_f64() * 1e3)).unwrap();
    assert!(measured.len() > 3, "all shapes agree with the default: {measured:?}");
    assert!(measured.windows(2).all(|pair| pair[0].elapsed_ms <= pair[1].elapsed_ms));
    assert_eq!(engine.tuning().rows, Some(measured[0].shape));
    engine.reset();
    assert_eq!(greedy(&mut engine, &prompt, 8), before);
}

/// The tensor of this name in a safetensors file of f32.
fn tensor(file: &std::path::Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let offsets: Vec<usize> =
        header[name]["data_offsets"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect();
    let data = &bytes[8 + header_bytes + offsets[0]..8 + header_bytes + offsets[1]];
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn adapters_give_what_peft_gives_and_leave_the_base_as_it_was() {
    let gpu = gpu(GpuOptions::default());
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    for (case, model) in [("llama3_r8_all", "llama3_gqa"), ("qwen2_r4_rslora", "qwen2_bias")] {
        let prompts: serde_json::Value =
            serde_json::from_slice(&std::fs::read(root.join(format!("expected/{model}/prompts.json"))).unwrap())
                .unwrap();
        let prompt: Vec<u32> = prompts["r33"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
        let open = |which: &str| {
            let source = DirectorySource::new(root.join(format!("lora/{case}/{which}"))).unwrap();
            block_on(bayan_models::Adapter::open(Rc::new(source))).unwrap()
        };
        let (first, last) = (open("adapter_init"), open("adapter_final"));
        let mut engine = engine(model, &gpu, exact());
        let logits = |engine: &mut Engine| block_on(engine.logits(&prompt, false)).unwrap().concat();
        let base = logits(&mut engine);
        for (adapter, key) in [(&first, "init"), (&last, "final")] {
            engine.attach("tuned", adapter, 1.0).unwrap();
            let expected =
                tensor(&root.join(format!("lora/{case}/logits.safetensors")), &format!("{key}.r33.last_logits"));
            let error = nmse(&expected, &logits(&mut engine));
            assert!(error < 1e-8, "{case} {key}: NMSE {error:.2e}");
            assert!(engine.detach("tuned"));
            assert_eq!(logits(&mut engine), base, "{case}: the base is what it was");
        }
        // Two at half scale are one at full scale.
        engine.attach("one", &last, 0.5).unwrap();
        engine.attach("two", &last, 0.5).unwrap();
        assert!(matches!(engine.attach("one", &last, 1.0), Err(GenerateError::AdapterName(_))));
        let expected = tensor(&root.join(format!("lora/{case}/logits.safetensors")), "final.r33.last_logits");
        assert!(nmse(&expected, &logits(&mut engine)) < 1e-8, "{case}: two halves");
        assert_eq!(engine.adapters(), ["one", "two"]);
    }
    let mut engine = engine("qwen3_qknorm", &gpu, exact());
    let source = DirectorySource::new(root.join("lora/llama3_r8_all/adapter_final")).unwrap();
    let foreign = block_on(bayan_models::Adapter::open(Rc::new(source))).unwrap();
    assert!(engine.attach("foreign", &foreign, 1.0).is_err());
    assert!(engine.adapters().is_empty());
}

#[test]
fn the_context_ends_openly() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("llama3_gqa", &gpu, EngineOptions { context: Some(24), ..exact() });
    let prompt = ids(20, engine.decoder().sizes().vocab_size);
    let mut count = 0;
    let mut counted = |_| {
        count += 1;
        ControlFlow::Continue(())
    };
    let usage = block_on(engine.generate(&prompt, &SampleSettings::default(), &[], &[], 100, &mut counted)).unwrap();
    assert_eq!((usage.finish, count), (Finish::ContextFull, 4));
    // Nothing asked for: nothing is cached that was not computed.
    engine.reset();
    let usage = block_on(
        engine.generate(&prompt[..8], &SampleSettings::default(), &[], &[], 0, &mut |_| ControlFlow::Continue(())),
    )
    .unwrap();
    assert_eq!((usage.generated_tokens, engine.cached_tokens()), (0, 7));
    let error = block_on(
        engine.generate(&ids(24, 1000), &SampleSettings::default(), &[], &[], 1, &mut |_| ControlFlow::Continue(())),
    )
    .unwrap_err();
    assert!(matches!(error, GenerateError::PromptTooLong { prompt: 24, context: 24 }), "{error}");
    let error = block_on(
        engine.generate(&[1_000_000], &SampleSettings::default(), &[], &[], 1, &mut |_| ControlFlow::Continue(())),
    )
    .unwrap_err();
    assert!(matches!(error, GenerateError::Token { .. }), "{error}");
    let error =
        block_on(engine.generate(&[], &SampleSettings::default(), &[], &[], 1, &mut |_| ControlFlow::Continue(())))
            .unwrap_err();
    assert!(matches!(error, GenerateError::EmptyPrompt), "{error}");
}

#[test]
fn a_lost_device_is_an_error_and_not_a_panic() {
    let gpu = gpu(GpuOptions::default());
    let mut engine = engine("llama3_gqa", &gpu, exact());
    gpu.destroy();
    let error = block_on(engine.logits(&[1, 2, 3], false)).unwrap_err();
    assert!(error.to_string().contains("lost"), "{error}");
}

#[test]
fn importance_is_the_mean_square_of_each_matrix_input() {
    let gpu = gpu(GpuOptions::default());
    for name in ["llama3_tied", "phi3_fused", "jais", "lfm2"] {
        let checkpoint = checkpoint(name);
        let mut engine = engine(name, &gpu, EngineOptions { context: Some(64), prefill_chunk: Some(16), ..exact() });
        let text = ids(90, engine.decoder().sizes().vocab_size);
        let windows: Vec<&[u32]> = text.chunks(50).collect();
        let mut read = 0;
        let found = block_on(engine.importance(&windows, &mut |tokens| read = tokens)).unwrap();
        assert_eq!((read, found.tokens()), (90, 90));
        // Every matrix but an embedding that is no output head has its inputs.
        let embedding = |tensor: &str| {
            (tensor.ends_with("embed_tokens.weight") || tensor.ends_with("wte.weight"))
                && checkpoint.tensor("lm_head.weight").is_some()
        };
        let matrices = checkpoint
            .tensors()
            .iter()
            .filter(|t| t.shape.len() == 2 && t.name.ends_with(".weight") && !embedding(&t.name));
        let expected: std::collections::BTreeSet<&str> = matrices.map(|t| t.name.as_str()).collect();
        assert_eq!(
            found.columns().keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(),
            expected,
            "{name}"
        );
    }
    // The first layer reads the normalised embeddings, which are easily made here.
    let checkpoint = checkpoint("llama3_tied");
    let mut engine = engine("llama3_tied", &gpu, EngineOptions { context: Some(64), ..exact() });
    let text = ids(50, engine.decoder().sizes().vocab_size);
    let found = block_on(engine.importance(&[&text], &mut |_| {})).unwrap();
    let table = block_on(checkpoint.read_f32("model.embed_tokens.weight")).unwrap();
    let gamma = block_on(checkpoint.read_f32("model.layers.0.input_layernorm.weight")).unwrap();
    let mut expected = vec![0f64; gamma.len()];
    for &id in &text {
        let row = &table[id as usize * gamma.len()..][..gamma.len()];
        let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / gamma.len() as f64;
        let scale = 1.0 / (mean + f64::from(engine.decoder().sizes().rms_norm_eps)).sqrt();
        expected
            .iter_mut()
            .zip(row.iter().zip(&gamma))
            .for_each(|(sum, (v, g))| *sum += (f64::from(*v) * scale * f64::from(*g)).powi(2) / 50.0);
    }
    let expected: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
    assert!(nmse(&expected, &found.columns()["model.layers.0.self_attn.v_proj.weight"]) < 1e-10);
    let long = ids(65, 100);
    assert!(matches!(block_on(engine.importance(&[&long], &mut |_| {})), Err(GenerateError::PromptTooLong { .. })));
}
